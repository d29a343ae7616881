//! A real HTTP server.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::ask::{BULK, Protocol, bulk};
use super::namespace::Namespace;
use super::process::Process;
use super::run::Run;
use super::wait;

/// nginx, which answers every request with `NAME ADDRESS PORT`: its own name, then the client as it sees it.
#[derive(Debug)]
pub struct Web {
    process: Process,
}

impl Web {
    /// Serves on these addresses of `namespace` as `name`. Returns when it answers.
    pub fn start(
        run: &Run,
        namespace: &Namespace,
        name: &str,
        addresses: &[SocketAddr],
    ) -> Result<Self> {
        let directory = run.directory().join(format!("nginx-{name}"));
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        let config = directory.join("nginx.conf");
        fs::write(&config, configuration(name, addresses)?)?;
        fs::write(directory.join(BULK.trim_start_matches('/')), bulk())?;
        let mut command = namespace.command("nginx");
        command.arg("-p").arg(&directory).arg("-c").arg(&config);
        let mut process = Process::start(namespace, &format!("nginx-{name}"), command)
            .context("nginx (Debian: package nginx-light) is needed")?;
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
        Ok(Self { process })
    }

    /// The server's process.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn configuration(name: &str, addresses: &[SocketAddr]) -> Result<String> {
    let mut listen = String::new();
    for address in addresses {
        writeln!(listen, "    listen {address} backlog=4096;")?;
    }
    // Relative paths are below the directory given by -p.
    Ok(format!(
        "daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  keepalive_requests 1000000;
  keepalive_timeout 600s;
  server {{
{listen}    location / {{
      default_type text/plain;
      return 200 \"{name} $remote_addr $remote_port\\n\";
    }}
    location = {BULK} {{ root .; }}
  }}
}}
"
    ))
}
