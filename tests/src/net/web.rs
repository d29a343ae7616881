//! A real HTTP server.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::ask::{BULK, Protocol, bulk};
use super::namespace::Namespace;
use super::process::Process;
use super::run::Run;
use super::wait;

/// Where a server says whether it is well.
pub const WELL: &str = "/well";

/// Where a server ends the connection without an answer.
pub const CLOSING: &str = "/closing";
/// Where a server resets the connection without an answer.
pub const RESETTING: &str = "/resetting";

/// nginx, which answers every request with `NAME ADDRESS PORT`: its own name, then the client as it sees it. At [`WELL`] it answers with
/// `well`, or with status 503.
#[derive(Debug)]
pub struct Web {
    process: Process,
    /// A file that is there while the server is not well.
    unwell: PathBuf,
}

impl Web {
    /// Serves on these addresses of `namespace` as `name`. Returns when it answers.
    pub fn start(
        run: &Run,
        namespace: &Namespace,
        name: &str,
        addresses: &[SocketAddr],
    ) -> Result<Self> {
        let directory = directory(run, name)?;
        let unwell = directory.join("unwell");
        fs::write(directory.join(BULK.trim_start_matches('/')), bulk())?;
        let http = configuration(name, addresses, &unwell)?;
        let mut process = start(namespace, name, &directory, &http)?;
        for &address in addresses {
            let mut state = Ok(());
            wait::until(
                &format!("{name} to answer"),
                Duration::from_secs(10),
                || {
                    state = process.expect_running();
                    let answer = namespace.within(|| Protocol::Tcp.ask(None, address));
                    state.is_err() || matches!(answer, Ok(Ok(_)))
                },
            )?;
            state?;
        }
        Ok(Self { process, unwell })
    }

    /// What it says of itself at [`WELL`].
    pub fn set_well(&self, well: bool) -> Result<()> {
        if !well {
            return Ok(fs::write(&self.unwell, [])?);
        }
        match fs::remove_file(&self.unwell) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The server's process.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn configuration(name: &str, addresses: &[SocketAddr], unwell: &Path) -> Result<String> {
    let unwell = unwell.display();
    let mut listen = String::new();
    for address in addresses {
        writeln!(listen, "    listen {address} backlog=4096;")?;
    }
    Ok(format!(
        "  access_log off;
  keepalive_requests 1000000;
  keepalive_timeout 600s;
  server {{
{listen}    location / {{
      default_type text/plain;
      return 200 \"{name} $remote_addr $remote_port\\n\";
    }}
    location = {BULK} {{ root .; }}
    location = {WELL} {{
      default_type text/plain;
      if (-f {unwell}) {{ return 503; }}
      return 200 \"well\\n\";
    }}
    location = {CLOSING} {{ return 444; }}
    location = {RESETTING} {{
      reset_timedout_connection on;
      return 444;
    }}
  }}
"
    ))
}

/// Makes the directory of an nginx of this name, below which its relative paths are.
pub fn directory(run: &Run, name: &str) -> Result<PathBuf> {
    let directory = run.directory().join(format!("nginx-{name}"));
    fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
    Ok(directory)
}

/// Starts nginx with these directives in its block `http`.
pub fn start(namespace: &Namespace, name: &str, directory: &Path, http: &str) -> Result<Process> {
    let config = directory.join("nginx.conf");
    let text = format!(
        "daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
{http}}}
"
    );
    fs::write(&config, text)?;
    let mut command = namespace.command("nginx");
    command.arg("-p").arg(directory).arg("-c").arg(&config);
    Process::start(namespace, &format!("nginx-{name}"), command)
        .context("nginx (Debian: package nginx-light) is needed")
}
