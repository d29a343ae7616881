//! The way to the API server: by a kubeconfig, or as a pod's service account.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::error::text;

/// Sluice's own namespace where nothing else is known.
pub const DEFAULT_NAMESPACE: &str = "sluice-system";
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// The user's choice of the API server. Without either it is found as kubectl does: `KUBECONFIG` or `~/.kube/config`, else
/// the pod's service account.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    /// A kubeconfig.
    pub kubeconfig: Option<&'a Path>,
    /// One of its contexts.
    pub context: Option<&'a str>,
}

/// Where the API server is.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The client's configuration. Its default namespace is the context's or the pod's.
    pub config: Config,
    /// The namespace of the pod whose service account is used.
    pub pod_namespace: Option<String>,
}

/// No connection.
#[derive(thiserror::Error, Debug)]
pub enum ConnectError {
    /// The file given cannot be used.
    #[error("cannot use {} as a kubeconfig: {message}: correct it, or give another one with --kubeconfig", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// Nothing says where the API server is.
    #[error("{kubeconfig}; {pod}")]
    Nothing {
        /// Why no kubeconfig serves.
        kubeconfig: String,
        /// Why this is no pod that could ask.
        pod: String,
    },
    /// The kubeconfig has no such context.
    #[error("the configuration has no context {context}; it has {}", if .known.is_empty() { "none".to_owned() } else { .known.join(", ") })]
    Context {
        /// The context that was asked for.
        context: String,
        /// The contexts that there are.
        known: Vec<String>,
    },
    /// The configuration does not make a client.
    #[error("cannot use the cluster configuration: {0}")]
    Unusable(String),
}

impl Connection {
    /// Finds the configuration. Does not talk to the API server.
    pub async fn find(choice: Choice<'_>) -> Result<Self, ConnectError> {
        let file = match choice.kubeconfig {
            Some(path) => Kubeconfig::read_from(path).map_err(|error| file_error(path, &error))?,
            None => match Kubeconfig::read() {
                Ok(file) => file,
                Err(error) => return Self::of_pod(choice, text(&error)),
            },
        };
        let known: Vec<String> = file.contexts.iter().map(|c| c.name.clone()).collect();
        if let Some(context) = choice.context
            && known.iter().all(|known| known != context)
        {
            let context = context.to_owned();
            return Err(ConnectError::Context { context, known });
        }
        let options = KubeConfigOptions {
            context: choice.context.map(str::to_owned),
            ..KubeConfigOptions::default()
        };
        match Config::from_custom_kubeconfig(file, &options).await {
            Ok(config) => Ok(Self::new(config, None)),
            Err(error) => match choice.kubeconfig {
                Some(path) => Err(file_error(path, &error)),
                None => Self::of_pod(choice, text(&error)),
            },
        }
    }

    fn of_pod(choice: Choice<'_>, kubeconfig: String) -> Result<Self, ConnectError> {
        if choice.context.is_some() {
            return Err(ConnectError::Unusable(kubeconfig));
        }
        match Config::incluster() {
            Ok(config) => {
                let namespace = config.default_namespace.clone();
                Ok(Self::new(config, Some(namespace)))
            }
            Err(error) => Err(ConnectError::Nothing {
                kubeconfig,
                pod: text(&error),
            }),
        }
    }

    /// Reads have no time limit of the connection's: a watch is silent for as long as nothing changes.
    fn new(mut config: Config, pod_namespace: Option<String>) -> Self {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = None;
        Self {
            config,
            pod_namespace,
        }
    }

    /// Sluice's own namespace: the one given, else the pod's, else [`DEFAULT_NAMESPACE`].
    pub fn own_namespace(&self, given: Option<&str>) -> String {
        let namespace = given.or(self.pod_namespace.as_deref());
        namespace.unwrap_or(DEFAULT_NAMESPACE).to_owned()
    }

    /// Makes a client. Does not talk to the API server yet.
    pub fn client(&self) -> Result<Client, ConnectError> {
        Client::try_from(self.config.clone()).map_err(|error| ConnectError::Unusable(text(&error)))
    }
}

fn file_error(path: &Path, error: &kube::config::KubeconfigError) -> ConnectError {
    ConnectError::File {
        path: path.to_owned(),
        message: text(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'https://192.0.2.1:6443'}}]
users: [{name: u, user: {token: t}}]
contexts:
- {name: plain, context: {cluster: c, user: u}}
- {name: shop, context: {cluster: c, user: u, namespace: shop}}
current-context: plain
";

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, content: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("sluice-kube-{}-{name}", std::process::id()));
            std::fs::write(&path, content).expect("temporary file");
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    async fn find(file: &Scratch, context: Option<&str>) -> Result<Connection, ConnectError> {
        let kubeconfig = Some(file.0.as_path());
        Connection::find(Choice {
            kubeconfig,
            context,
        })
        .await
    }

    #[tokio::test]
    async fn a_context_is_chosen_by_its_name() {
        let file = Scratch::new("contexts", KUBECONFIG);
        let plain = find(&file, None).await.expect("the current context");
        assert_eq!(plain.config.default_namespace, "default");
        assert_eq!(plain.own_namespace(None), DEFAULT_NAMESPACE);
        assert_eq!(plain.own_namespace(Some("lb")), "lb");
        let shop = find(&file, Some("shop")).await.expect("a context");
        assert_eq!(shop.config.default_namespace, "shop");
        let error = find(&file, Some("else")).await.expect_err("no context");
        let text = error.to_string();
        assert!(
            text.ends_with("no context else; it has plain, shop"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_is_named_with_the_reason() {
        let file = Scratch::new("broken", "clusters: [");
        let text = find(&file, None).await.expect_err("broken").to_string();
        assert!(
            text.contains("sluice-kube-") && text.contains("--kubeconfig"),
            "{text}"
        );
        let gone = Scratch(PathBuf::from("/nonexistent/kubeconfig"));
        let text = find(&gone, None).await.expect_err("gone").to_string();
        assert!(text.contains("/nonexistent/kubeconfig"), "{text}");
    }
}
