//! `vdens`: a command in a network namespace of its own, plugged into virtual Ethernet.

use std::process::exit;

use vdens::cli::{self, Vdens};
use vdens::config::Config;
use vdens::doctor;
use vdens::error::{EXIT_FAILURE, report};
use vdens::logging::{self, Choice};
use vdens::session::Session;
use vdens::supervisor::{self, Failure};

const PROGRAM: &str = "vdens";

fn main() {
    let cli: Vdens = cli::parse(PROGRAM, EXIT_FAILURE, std::env::args_os());
    exit(match run(&cli) {
        Ok(status) => status,
        Err(Failure::Signal(signal)) => 128 + signal as i32,
        Err(Failure::Error(status, error)) => {
            report(PROGRAM, error);
            status
        }
    });
}

fn run(cli: &Vdens) -> Result<i32, Failure> {
    if cli.doctor {
        return Ok(doctor::run(&cli.common, cli.json)?);
    }
    let config = Config::load(cli.common.config.as_deref())?;
    logging::start(&Choice::new(&cli.common, &config))?;
    config.complain();
    let session = Session::new(cli, &config)?;
    supervisor::run(&session.plan, session.jobs)
}
