//! The definitions on a real API server: what it refuses, with which words, and what it fills in.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::kube::ControlPlane;
use sluice_tests::net::Run;
use sluice_tests::net::suite::{Stage, Suite};

struct Server {
    control: ControlPlane,
    run: Run,
}

impl Server {
    fn start() -> Result<Self> {
        let run = Run::start()?;
        let control = ControlPlane::api(&run, "control")?;
        control.admin().define_kinds()?;
        Ok(Self { control, run })
    }

    /// Lets the API server validate an object without storing it, and returns the answer.
    fn create(&self, object: &Value) -> Result<String> {
        let arguments = ["create", "--dry-run=server", "-f", "-"];
        let admin = self.control.admin();
        admin.kubectl_with(arguments, &object.to_string())
    }
}

impl Stage for Server {
    fn after_check(&mut self) -> Result<()> {
        Ok(())
    }

    fn evidence(&mut self) -> String {
        self.control.evidence()
    }

    fn run_name(&self) -> String {
        self.run.name().to_owned()
    }
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("what is right is accepted", accepted);
    suite.check(
        "what breaks a rule is refused by field and remedy",
        |server: &mut Server| CASES.iter().try_for_each(|case| refused(server, case)),
    );
    suite.check("fields outside lists get their defaults", defaults);
    suite.check("a manifest is the same after the server took it", unchanged);
    suite.main(Server::start)
}

fn virtual_server() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "VirtualServer",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "addresses": [{"ip": "203.0.113.10"}, {"ip": "2001:db8::10"}],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}],
            "forwarding": {"mode": "FullNAT"},
            "pools": [{"name": "v1", "weight": 100}, {"name": "v2", "weight": 0}],
        },
    })
}

fn pool(servers: &Value) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "RealServerPool",
        "metadata": {"name": "v1", "namespace": "default"},
        "spec": {"servers": servers, "targetPorts": [{"name": "http", "port": 8080}]},
    })
}

fn policy() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "RolloutPolicy",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "virtualServerName": "web",
            "stablePoolName": "v1",
            "candidatePoolName": "v2",
            "strategy": {"canary": {"steps": [{"weight": 10, "pauseSeconds": 60}, {"weight": 50, "gate": "Manual"}]}},
        },
    })
}

fn node() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "LoadBalancerNode",
        "metadata": {"name": "n1"},
        "spec": {"interfaces": ["eth0"]},
    })
}

fn address_pool() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "AddressPool",
        "metadata": {"name": "edge"},
        "spec": {
            "addresses": ["203.0.113.0/28"],
            "announce": {"l2": {
                "interfaces": ["eth0"],
                "nodeSelector": {"matchLabels": {"rack": "a"}},
                "groups": 1,
                "gateways": ["10.0.0.1", "2001:db8::1"],
            }},
        },
    })
}

fn accepted(server: &mut Server) -> Result<()> {
    let many: Vec<Value> = (0..512)
        .map(|i| json!({"name": format!("s{i}"), "address": format!("10.0.{}.{}", i / 256, i % 256)}))
        .collect();
    let sources = [
        json!({"static": [{"name": "a", "address": "10.0.0.1", "weight": 3, "targetPorts": [{"name": "http", "port": 81}]}]}),
        json!({"static": many}),
        json!({"serviceName": "web"}),
        json!({"selector": {"matchLabels": {"app.kubernetes.io/name": "web"}}}),
        json!({"selector": {"matchExpressions": [
            {"key": "app", "operator": "In", "values": ["web", "shop"]},
            {"key": "canary", "operator": "DoesNotExist"},
        ]}}),
    ];
    let mut named = pool(&json!({"serviceName": "web"}));
    named["spec"]["targetPorts"] = json!([{"name": "http", "port": "web-port"}]);
    let mut routed = address_pool();
    routed["metadata"]["name"] = json!("p".repeat(63));
    routed["spec"]["announce"] = json!({"none": {}});
    let mut drained = node();
    drained["spec"]["drain"] = json!(true);
    let mut limited = virtual_server();
    let block = |n| format!("2001:db8:aaaa:bbbb:cccc:dddd:eeee:{n:x}/128");
    let blocks: Vec<String> = (0..256).map(block).collect();
    limited["spec"]["sources"] = json!({"allow": blocks});
    limited["spec"]["serverSelection"] = json!("ClientAddress");
    let objects = [
        virtual_server(),
        limited,
        policy(),
        node(),
        drained,
        named,
        address_pool(),
        routed,
    ];
    for object in objects.into_iter().chain(sources.iter().map(pool)) {
        server
            .create(&object)
            .with_context(|| object.to_string().chars().take(500).collect::<String>())?;
    }
    Ok(())
}

/// A right object, what is set in it where, and words that the answer must have.
struct Case {
    object: fn() -> Value,
    pointer: &'static str,
    value: fn() -> Value,
    words: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        object: virtual_server,
        pointer: "/spec/addresses",
        value: || json!([{"ip": "203.0.113.10"}, {"ip": "203.0.113.11"}]),
        words: &["spec.addresses", "at most one IPv4 and one IPv6 address"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/addresses/0/ip",
        value: || json!("203.0.113.0/24"),
        words: &["spec.addresses[0].ip", "must be an IPv4 or IPv6 address"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/addresses",
        value: || json!([]),
        words: &["spec.addresses", "at least 1"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/ports/1",
        value: || json!({"name": "other", "protocol": "TCP", "port": 80}),
        words: &["spec.ports", "each protocol and port may appear once"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/ports/1/name",
        value: || json!("http"),
        words: &["spec.ports[1]", "Duplicate value"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/ports/0/port",
        value: || json!(0),
        words: &["spec.ports[0].port", "greater than or equal to 1"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/ports/0/name",
        value: || json!("Web_Port"),
        words: &["spec.ports[0].name", "should match"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/forwarding/mode",
        value: || json!("Direct"),
        words: &["spec.forwarding.mode", "NAT", "FullNAT", "DR", "TUN"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/pools/0/weight",
        value: || json!(0),
        words: &["spec.pools", "give at least one pool a weight above 0"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/pools/1/weight",
        value: || json!(-1),
        words: &["spec.pools[1].weight", "greater than or equal to 0"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/pools/1/weight",
        value: || json!(10_001),
        words: &["spec.pools[1].weight", "less than or equal to 10000"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/serverSelection",
        value: || json!("Server"),
        words: &["spec.serverSelection", "Flow", "ClientAddress"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/sources",
        value: || json!({}),
        words: &["spec.sources.allow", "Required value"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/sources",
        value: || json!({"allow": []}),
        words: &["spec.sources.allow", "at least 1"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/sources",
        value: || json!({"allow": (0..257).map(|n| format!("10.0.{}.{}", n / 256, n % 256)).collect::<Vec<_>>()}),
        words: &["spec.sources.allow", "at most 256"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/sources",
        value: || json!({"allow": ["198.51.100.7", "198.51.100.7"]}),
        words: &["spec.sources.allow[1]", "Duplicate value"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/sources",
        value: || json!({"allow": ["2001:db8::/32", "198.51.100.1/24"]}),
        words: &["spec.sources.allow", "whose lower bits are 0"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/sources",
        value: || json!({"allow": ["::ffff:198.51.100.0/120"]}),
        words: &[
            "spec.sources.allow",
            "must be an IPv4 or IPv6 address, or a block",
        ],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/sources",
        value: || json!({"allow": ["10.0.0.0/08"]}),
        words: &[
            "spec.sources.allow",
            "must be an IPv4 or IPv6 address, or a block",
        ],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/forward",
        value: || json!({}),
        words: &["unknown field \"spec.forward\""],
    },
    Case {
        object: || pool(&json!({"serviceName": "web"})),
        pointer: "/spec/servers",
        value: || json!({"serviceName": "web", "selector": {"matchLabels": {"app": "web"}}}),
        words: &[
            "spec.servers",
            "exactly one of selector, serviceName and static",
        ],
    },
    Case {
        object: || pool(&json!({"serviceName": "web"})),
        pointer: "/spec/servers",
        value: || json!({}),
        words: &[
            "spec.servers",
            "exactly one of selector, serviceName and static",
        ],
    },
    Case {
        object: || pool(&json!({"serviceName": "web"})),
        pointer: "/spec/servers",
        value: || json!({"selector": {}}),
        words: &["spec.servers.selector", "would select everything"],
    },
    Case {
        object: || pool(&json!({"serviceName": "web"})),
        pointer: "/spec/servers",
        value: || json!({"selector": {"matchExpressions": [{"key": "app", "operator": "In"}]}}),
        words: &[
            "spec.servers.selector.matchExpressions[0]",
            "In and NotIn need values",
        ],
    },
    Case {
        object: || pool(&json!({"static": [{"name": "a", "address": "10.0.0.1"}]})),
        pointer: "/spec/servers/static/0/address",
        value: || json!("web-1.example"),
        words: &[
            "spec.servers.static[0].address",
            "must be an IPv4 or IPv6 address",
        ],
    },
    Case {
        object: || pool(&json!({"serviceName": "web"})),
        pointer: "/spec/targetPorts/0/port",
        value: || json!("a-name-that-is-too-long"),
        words: &["spec.targetPorts[0].port", "may not be more than 15"],
    },
    Case {
        object: || pool(&json!({"serviceName": "web"})),
        pointer: "/spec/targetPorts/0/port",
        value: || json!(70_000),
        words: &["spec.targetPorts[0].port", "less than or equal to 65535"],
    },
    Case {
        object: policy,
        pointer: "/spec/candidatePoolName",
        value: || json!("v1"),
        words: &["spec", "stablePoolName and candidatePoolName must differ"],
    },
    Case {
        object: policy,
        pointer: "/spec/strategy/canary/steps/1/weight",
        value: || json!(5),
        words: &["spec.strategy.canary.steps", "must not go down"],
    },
    Case {
        object: policy,
        pointer: "/spec/strategy/canary/steps/0/weight",
        value: || json!(101),
        words: &[
            "spec.strategy.canary.steps[0].weight",
            "less than or equal to 100",
        ],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/ports/0/port",
        value: || json!("eighty"),
        words: &["spec.ports[0].port", "must be of type integer"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/forwarding",
        value: || json!(null),
        words: &["spec.forwarding", "Required value"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/pools/1/name",
        value: || json!("v1"),
        words: &["spec.pools[1]", "Duplicate value"],
    },
    Case {
        object: virtual_server,
        pointer: "/spec/pools",
        value: || json!([]),
        words: &["spec.pools", "at least 1"],
    },
    Case {
        object: || pool(&json!({"static": [{"name": "a", "address": "10.0.0.1"}]})),
        pointer: "/spec/servers/static/1",
        value: || json!({"name": "a", "address": "10.0.0.2"}),
        words: &["spec.servers.static[1]", "Duplicate value"],
    },
    Case {
        object: || pool(&json!({"static": [{"name": "a", "address": "10.0.0.1"}]})),
        pointer: "/spec/servers/static/0/weight",
        value: || json!(1_001),
        words: &[
            "spec.servers.static[0].weight",
            "less than or equal to 1000",
        ],
    },
    Case {
        object: policy,
        pointer: "/spec/strategy/canary/steps",
        value: || json!([]),
        words: &["spec.strategy.canary.steps", "at least 1"],
    },
    Case {
        object: policy,
        pointer: "/spec/strategy/canary/steps/0/gate",
        value: || json!("Perhaps"),
        words: &["spec.strategy.canary.steps[0].gate", "Manual"],
    },
    Case {
        object: node,
        pointer: "/spec/interfaces/0",
        value: || json!("an-interface-too-long"),
        words: &["spec.interfaces[0]", "Too long"],
    },
    Case {
        object: address_pool,
        pointer: "/spec/announce/none",
        value: || json!({}),
        words: &["spec.announce", "give exactly one of l2 and none"],
    },
    Case {
        object: address_pool,
        pointer: "/spec/announce",
        value: || json!({}),
        words: &["spec.announce", "give exactly one of l2 and none"],
    },
    Case {
        object: address_pool,
        pointer: "/spec/announce/l2/groups",
        value: || json!(0),
        words: &[
            "spec.announce.l2.groups",
            "should be greater than or equal to 1",
        ],
    },
    Case {
        object: address_pool,
        pointer: "/spec/announce/l2/groups",
        value: || json!(17),
        words: &[
            "spec.announce.l2.groups",
            "should be less than or equal to 16",
        ],
    },
    Case {
        object: address_pool,
        pointer: "/spec/announce/l2/groups",
        value: || json!(16),
        words: &["spec.announce.l2", "gateways need groups: 1"],
    },
    Case {
        object: address_pool,
        pointer: "/spec/announce/l2/gateways/1",
        value: || json!("10.0.0.1/24"),
        words: &[
            "spec.announce.l2.gateways",
            "must be an IPv4 or IPv6 address",
        ],
    },
    Case {
        object: address_pool,
        pointer: "/spec/announce/l2/nodeSelector",
        value: || json!({}),
        words: &[
            "spec.announce.l2.nodeSelector",
            "would select everything: give matchLabels or matchExpressions",
        ],
    },
    Case {
        object: address_pool,
        pointer: "/spec/announce/l2/interfaces/0",
        value: || json!("eth0/1"),
        words: &["spec.announce.l2.interfaces[0]"],
    },
    Case {
        object: address_pool,
        pointer: "/metadata/name",
        value: || json!("p".repeat(64)),
        words: &["metadata.name may have at most 63 characters"],
    },
];

fn refused(server: &Server, case: &Case) -> Result<()> {
    let mut object = (case.object)();
    set(&mut object, case.pointer, (case.value)())?;
    let answer = match server.create(&object) {
        Ok(answer) => format!("accepted: {answer}"),
        Err(error) => format!("{error:#}"),
    };
    for word in case.words {
        ensure!(
            answer.contains(word) && !answer.starts_with("accepted"),
            "{} set to {}: the answer has no {word:?}: {answer}",
            case.pointer,
            (case.value)()
        );
    }
    Ok(())
}

/// Sets what a JSON pointer (RFC 6901) leads to; its last part may be new.
fn set(object: &mut Value, pointer: &str, value: Value) -> Result<()> {
    let (parent, last) = pointer.rsplit_once('/').context("a pointer")?;
    let parent = object.pointer_mut(parent).context("the way to the field")?;
    match last.parse::<usize>() {
        Ok(index) => {
            let items = parent.as_array_mut().context("a list")?;
            match items.get_mut(index) {
                Some(item) => *item = value,
                None => items.push(value),
            }
        }
        Err(_) => parent[last] = value,
    }
    Ok(())
}

fn defaults(server: &mut Server) -> Result<()> {
    let admin = server.control.admin();
    let mut pool_with_l2 = address_pool();
    pool_with_l2["spec"]["announce"] = json!({"l2": {}});
    for (object, field, default) in [
        (virtual_server(), "/spec/poolSelection", json!("Flow")),
        (virtual_server(), "/spec/serverSelection", json!("Flow")),
        (node(), "/spec/role", json!("Director")),
        (node(), "/spec/xdpMode", json!("Auto")),
        (pool_with_l2, "/spec/announce/l2/groups", json!(4)),
    ] {
        let arguments = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        let answer = admin.kubectl_with(arguments, &object.to_string())?;
        let answer: Value = serde_json::from_str(&answer)?;
        let found = answer.pointer(field);
        ensure!(found == Some(&default), "{field} is {found:?}");
    }
    Ok(())
}

/// Lists are compared whole by tools such as Argo CD: nothing may be filled in within them.
fn unchanged(server: &mut Server) -> Result<()> {
    let admin = server.control.admin();
    for object in [
        virtual_server(),
        pool(&json!({"serviceName": "web"})),
        policy(),
        node(),
        address_pool(),
    ] {
        let text = object.to_string();
        admin.apply(&text)?;
        let again = admin.apply(&text)?;
        ensure!(again.contains("unchanged"), "{again}");
        let difference = admin.kubectl_with(["diff", "-f", "-"], &text);
        ensure!(difference.is_ok(), "{difference:?}");
        let name = |pointer| object.pointer(pointer).and_then(Value::as_str);
        let kind = name("/kind").context("a kind")?;
        let object_name = name("/metadata/name").context("a name")?;
        let answer = admin.json(["get", kind, object_name, "--namespace", "default"])?;
        for (field, given) in object["spec"].as_object().context("a spec")? {
            ensure!(
                answer["spec"][field] == *given,
                "{field} is {}",
                answer["spec"][field]
            );
        }
    }
    Ok(())
}
