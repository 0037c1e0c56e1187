//! `vdens`: a command in a network namespace of its own, plugged into virtual Ethernet.

use std::process::exit;

use vdens::cli::config::Config;
use vdens::cli::plan::Session;
use vdens::cli::{self, Vdens};
use vdens::error::EXIT_FAILURE;
use vdens::logging;
use vdens::output::report;
use vdens::session::{self, Failure};
use vdens::sys::privilege;
use vdens::sys::process::fail_on_panic;

const PROGRAM: &str = "vdens";

fn main() {
    fail_on_panic(PROGRAM, EXIT_FAILURE, life);
}

fn life() {
    let outcome = privilege::refuse_raised()
        .map_err(Failure::from)
        .and_then(|()| run(&cli::parse(PROGRAM, EXIT_FAILURE, std::env::args_os())));
    exit(match outcome {
        Ok(status) => status,
        Err(Failure::Signal(signal)) => 128 + signal as i32,
        Err(Failure::Error(status, error)) => {
            report(PROGRAM, error);
            status
        }
    });
}

fn run(cli: &Vdens) -> Result<i32, Failure> {
    let config = Config::load(cli.common.config.as_deref())?;
    logging::start(&cli.common.logging(&config))?;
    config.complain();
    let session = Session::new(cli, &config)?;
    session::run(&session.plan, session.jobs)
}
