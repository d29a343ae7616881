//! Somebody with a kubeconfig, and what they can do: kubectl, helm, a client in Rust.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config, Resource, config};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime;

use super::kubeconfig::Kubeconfig;
use super::programs::program;
use crate::net::{Namespace, until};

/// Requests of [`Account::apply_many`] that are under way at one time.
const AT_ONCE: usize = 16;

/// A user of a cluster, in the namespace of its API server.
///
/// Every command of kubectl or helm is a process of its own, killed with the thread that waits for it; errors hold what
/// it complained of.
#[derive(Clone, Debug)]
pub struct Account {
    namespace: Namespace,
    kubeconfig: Kubeconfig,
    home: PathBuf,
}

impl Account {
    /// Caches are kept in `home`: those of two clusters at the same address must not meet.
    pub(super) const fn new(namespace: Namespace, kubeconfig: Kubeconfig, home: PathBuf) -> Self {
        Self {
            namespace,
            kubeconfig,
            home,
        }
    }

    /// The file that says who this is.
    pub const fn kubeconfig(&self) -> &Kubeconfig {
        &self.kubeconfig
    }

    /// Runs kubectl and returns what it wrote.
    pub fn kubectl<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        finish(self.command("kubectl")?.args(arguments), "")
    }

    /// Runs helm and returns what it wrote.
    pub fn helm<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        finish(self.command("helm")?.args(arguments), "")
    }

    /// Runs kubectl with `-o json` and returns what it wrote.
    pub fn json<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Value> {
        let mut command = self.command("kubectl")?;
        command.args(arguments).args(["-o", "json"]);
        let text = finish(&mut command, "")?;
        serde_json::from_str(&text).with_context(|| format!("kubectl wrote no JSON: {text}"))
    }

    /// Applies manifests, YAML or JSON.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let mut command = self.command("kubectl")?;
        finish(command.args(["apply", "-f", "-"]), manifests)
    }

    /// Runs kubectl with `input` as its standard input, for `-f -`.
    pub fn kubectl_with<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Result<String> {
        finish(self.command("kubectl")?.args(arguments), input)
    }

    /// Asks for the JSON of `arguments` until `holds`; an error of kubectl counts as not yet. Returns the last answer.
    pub fn until<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        limit: Duration,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let words: Vec<_> = arguments
            .iter()
            .map(|word| word.as_ref().to_string_lossy())
            .collect();
        let what = format!("kubectl {}", words.join(" "));
        let mut last = None;
        let found = until(&what, limit, || {
            let answer = self.json(arguments);
            let held = answer.as_ref().is_ok_and(&mut holds);
            last = Some(answer);
            held
        });
        let answer = last.context("nothing was asked")?;
        match (found, answer) {
            (Ok(()), answer) => answer,
            (Err(error), Ok(value)) => Err(error.context(format!("the last answer: {value:#}"))),
            (Err(error), Err(last)) => Err(error.context(format!("the last answer: {last:#}"))),
        }
    }

    /// Waits until the status of `object`, such as `deployment/web`, has this condition as True.
    pub fn await_condition(&self, object: &str, condition: &str, limit: Duration) -> Result<Value> {
        self.until(&["get", object], limit, |value| {
            has_condition(value, condition)
        })
    }

    /// A command that runs a program of the cluster's as this user.
    pub fn command(&self, name: &str) -> Result<Command> {
        Ok(self.prepare(&program(name)?))
    }

    fn prepare(&self, program: &Path) -> Command {
        let mut command = self.namespace.command(program);
        command
            .env("HOME", &self.home)
            .env("KUBECONFIG", self.kubeconfig.path())
            .env("KUBECACHEDIR", self.home.join("cache"))
            .env("HELM_CACHE_HOME", self.home.join("helm/cache"))
            .env("HELM_CONFIG_HOME", self.home.join("helm/config"))
            .env("HELM_DATA_HOME", self.home.join("helm/data"));
        command
    }

    /// A shell that runs `script` as this user, with the programs of the cluster and of `more` in its path, and stops at the
    /// first command that fails.
    pub fn shell(&self, script: &str, more: &[&Path]) -> Result<Command> {
        let kubectl = program("kubectl")?;
        let own = kubectl.parent().context("a program has a directory")?;
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let path: Vec<PathBuf> = more
            .iter()
            .map(|path| (*path).to_owned())
            .chain([own.to_owned()])
            .chain(std::env::split_paths(&inherited))
            .collect();
        let mut command = self.prepare("bash".as_ref());
        command
            .env("PATH", std::env::join_paths(path)?)
            .args(["-euo", "pipefail", "-c", script]);
        Ok(command)
    }

    /// Runs `work` with a client, on a thread in the API server's namespace, and waits for it.
    pub fn with_client<T, F, W>(&self, work: F) -> Result<T>
    where
        T: Send,
        F: FnOnce(Client) -> W + Send,
        W: Future<Output = Result<T>>,
    {
        let path = self.kubeconfig.path();
        self.namespace.within(|| run_client(path, work))?
    }

    /// Applies objects of one kind in the namespace `default`, several at a time: kubectl takes them one after the other.
    pub fn apply_many<K>(&self, objects: &[Value]) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.with_client(async |client| {
            let api: Api<K> = Api::namespaced(client, "default");
            let api = &api;
            let writes = objects.iter().map(|object| async move {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let parameters = PatchParams::apply("test").force();
                api.patch(name, &parameters, &Patch::Apply(object)).await
            });
            let mut writes = futures::stream::iter(writes).buffer_unordered(AT_ONCE);
            while writes.try_next().await?.is_some() {}
            Ok(())
        })
    }

    /// Runs `work` with a client on a thread of its own, such as a watch beside the test.
    pub fn spawn_client<T, F, W>(&self, name: &str, work: F) -> Result<JoinHandle<Result<T>>>
    where
        T: Send + 'static,
        F: FnOnce(Client) -> W + Send + 'static,
        W: Future<Output = Result<T>>,
    {
        let path = self.kubeconfig.path().to_owned();
        self.namespace.spawn(name, move || run_client(&path, work))
    }
}

/// Sockets are of the namespace in which their thread is: all of the client stays on this one.
fn run_client<T, F, W>(kubeconfig: &Path, work: F) -> Result<T>
where
    F: FnOnce(Client) -> W,
    W: Future<Output = Result<T>>,
{
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let file = config::Kubeconfig::read_from(kubeconfig)?;
        let options = config::KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(file, &options).await?;
        work(Client::try_from(config)?).await
    })
}

/// Runs a command to its end with this input.
pub fn finish(command: &mut Command, input: &str) -> Result<String> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let mut stdin = child.stdin.take().context("a child without input")?;
    // A program that refuses its arguments does not read; its own complaint says more.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let result = child.wait_with_output()?;
    if !result.status.success() {
        let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        let complaint = String::from_utf8_lossy(&result.stderr);
        bail!(
            "{}: {}: {}",
            words.join(" "),
            result.status,
            complaint.trim()
        );
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

/// Whether an object's status has this condition as True.
pub fn has_condition(object: &Value, condition: &str) -> bool {
    object["status"]["conditions"]
        .as_array()
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|found| found["type"] == condition && found["status"] == "True")
        })
}

/// The objects of a list.
pub(super) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}
