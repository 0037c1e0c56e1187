//! `vdens-tap`: a tap that plugs a virtual machine into virtual Ethernet.

use std::process::exit;

use vdens::cli::config::Config;
use vdens::cli::{self, VdensTap};
use vdens::error::{EXIT_FAILURE, Result};
use vdens::logging;
use vdens::output::report;
use vdens::sys::privilege;
use vdens::sys::process::fail_on_panic;
use vdens::tap;

const PROGRAM: &str = "vdens-tap";

fn main() {
    fail_on_panic(PROGRAM, EXIT_FAILURE, life);
}

fn life() {
    let outcome = privilege::refuse_raised()
        .and_then(|()| run(&cli::parse(PROGRAM, EXIT_FAILURE, std::env::args_os())));
    exit(outcome.map_or_else(
        |error| {
            report(PROGRAM, error);
            EXIT_FAILURE
        },
        |()| 0,
    ));
}

fn run(cli: &VdensTap) -> Result<()> {
    let config = Config::load(cli.common.config.as_deref())?;
    logging::start(&cli.common.logging(&config))?;
    config.complain();
    tap::run(cli, &config)
}
