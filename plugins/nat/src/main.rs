//! The program behind the plugin `nat`: the proxy, and the gateway that the proxy starts.

mod forward;
mod gateway;
mod proxy;
mod report;
mod settings;
mod wire;

use std::env;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use report::Report;

/// Runs the proxy, and tells the plugin why it ends.
fn start_proxy(task: &str) -> io::Result<()> {
    let task = serde_json::from_str(task)?;
    let plugin = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    proxy::run(&task, &plugin).or_else(|error| {
        let report = Report::Failed(error.to_string());
        report::tell(&plugin, &report)
    })
}

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["proxy", task] => start_proxy(task),
        ["gateway", settings, socket] => serde_json::from_str(settings)
            .map_err(io::Error::from)
            .and_then(|settings| gateway::run(&settings, Path::new(socket))),
        _ => {
            eprintln!("vdens-nat: started by the plugin nat; it is not to be run by hand");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vdens-nat: {error}");
            ExitCode::FAILURE
        }
    }
}
