use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::*;
use crate::kind::Kind;
use crate::scripted::{self, Answer, Requests, list, refusal, watch_of};
use crate::store::{Change, Missed, Store};
use crate::watched::Topic;

#[derive(Default)]
struct Known {
    maps: Store<String>,
    failures: Vec<String>,
}

impl Index for Known {
    type Answer = ();

    fn believes(&mut self, (): ()) -> bool {
        true
    }
    fn works(&mut self, _: &'static str) {}
    fn failed(&mut self, _: &'static str, verb: &'static str, error: RequestError) {
        self.failures.push(format!("{verb}: {error}"));
    }
    fn missed(&mut self, _: &'static str, _: Missed) {}
}

struct Maps;

impl Watched for Maps {
    type Index = Known;
    type Object = ConfigMap;
    type Kept = String;
    const NAME: &'static str = "ConfigMap";
    const LABELS: Option<&'static str> = Some("app");

    fn api(client: &Client, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(client.clone(), namespace)
    }
    fn keep(map: ConfigMap) -> Result<String, String> {
        Ok(map.metadata.resource_version.unwrap_or_default())
    }
    fn store(known: &mut Known) -> &mut Store<String> {
        &mut known.maps
    }
    fn changed(_: &mut Known, _: Vec<Change<String>>) {}
}

fn map(name: &str, version: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": "shop", "name": name, "uid": "u", "resourceVersion": version.to_string()},
    })
}

struct Scripted {
    known: Known,
    queue: mpsc::Receiver<Message<Known>>,
    world: World,
    requests: Requests,
}

impl Scripted {
    fn new(answers: &[Answer]) -> Self {
        let (client, requests) = scripted::client(answers);
        let world = World::default();
        let server = Server {
            client,
            namespace: "shop".to_owned(),
            name: None,
            world: world.clone(),
            ask: Arc::new(|| Box::pin(std::future::ready(Ok(())))),
        };
        let (sender, queue) = mpsc::channel(16);
        tokio::spawn(Kind::of::<Maps>().watch(server, sender));
        Self {
            known: Known::default(),
            queue,
            world,
            requests,
        }
    }

    /// Takes messages until the first of a topic.
    async fn until(&mut self, topic: Topic) {
        loop {
            let next = timeout(Duration::from_secs(10), self.queue.recv()).await;
            let message = next.expect("a message").expect("it goes on");
            let is_it = message.topic == topic;
            message.take(&mut self.known);
            if is_it {
                return;
            }
        }
    }

    /// The request of this number, once it was sent.
    async fn request(&self, number: usize) -> String {
        let sent = async {
            loop {
                if let Some(request) = self.requests.lock().expect("no panic").get(number) {
                    return request.clone();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), sent).await.expect("sent")
    }

    fn versions(&self) -> Vec<&str> {
        let known = self.known.maps.objects.values();
        known.map(String::as_str).collect()
    }
}

fn is_watch(request: &str) -> bool {
    request.contains("watch=true")
}

#[tokio::test]
async fn a_list_has_all_pages_and_a_broken_watch_goes_on_where_it_was() {
    let mut scripted = Scripted::new(&[
        list(5, &[map("a", 3)], true),
        list(5, &[map("b", 4)], false),
        watch_of("MODIFIED", &map("a", 7)),
        watch_of("MODIFIED", &map("b", 8)),
    ]);
    scripted.until(Topic::Listed).await;
    assert_eq!(scripted.versions(), ["3", "4"]);
    scripted.until(Topic::Changed).await;
    assert_eq!(scripted.versions(), ["7", "4"]);
    scripted.until(Topic::Changed).await;
    assert_eq!(scripted.versions(), ["7", "8"]);
    assert_eq!(scripted.known.failures, [""; 0], "one end tells nothing");
    scripted.until(Topic::Failed).await;
    assert_eq!(
        scripted.known.failures,
        ["watch: the API server ends watches at once"]
    );
    let first = scripted.request(2).await;
    assert!(
        is_watch(&first) && first.contains("resourceVersion=5"),
        "{first}"
    );
    assert!(first.contains("labelSelector=app"), "{first}");
    let second = scripted.request(3).await;
    assert!(
        is_watch(&second) && second.contains("resourceVersion=7"),
        "{second}"
    );
}

#[tokio::test]
async fn where_versions_are_gone_everything_is_listed() {
    // Too old, and the kind itself was away.
    for code in [410, 404] {
        let mut scripted = Scripted::new(&[
            list(5, &[map("a", 3)], false),
            refusal(code),
            list(9, &[map("b", 8)], false),
        ]);
        scripted.until(Topic::Listed).await;
        scripted.until(Topic::Listed).await;
        assert_eq!(scripted.versions(), ["8"], "{code}");
    }
}

#[tokio::test]
async fn a_refused_watch_is_no_reason_to_list() {
    let mut scripted = Scripted::new(&[list(5, &[], false), refusal(403)]);
    scripted.until(Topic::Failed).await;
    assert_eq!(scripted.known.failures, ["watch: no (403)"]);
    let again = scripted.request(2).await;
    assert!(
        is_watch(&again) && again.contains("resourceVersion=5"),
        "{again}"
    );
}

#[tokio::test]
async fn in_another_world_everything_is_listed() {
    let mut scripted = Scripted::new(&[
        list(500, &[map("a", 400)], false),
        watch_of("MODIFIED", &map("a", 501)),
        list(7, &[map("a", 6)], false),
    ]);
    scripted.until(Topic::Changed).await;
    scripted.world.raise();
    scripted.until(Topic::Listed).await;
    assert_eq!(scripted.versions(), ["6"]);
    let watch = scripted.request(3).await;
    assert!(
        is_watch(&watch) && watch.contains("resourceVersion=7"),
        "{watch}"
    );
}
