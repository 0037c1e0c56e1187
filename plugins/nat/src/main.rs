//! The program behind the plugin `nat`: the proxy, and the gateway that the proxy starts.

mod gateway;
mod proxy;
mod settings;
mod wire;

use std::env;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["proxy", task] => serde_json::from_str(task)
            .map_err(io::Error::from)
            .and_then(|task| proxy::run(&task, io::stdin().as_fd().try_clone_to_owned()?)),
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
