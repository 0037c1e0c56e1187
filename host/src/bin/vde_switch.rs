//! `vde_switch`: an Ethernet switch with the command line and the console of VDE's.

use std::process::exit;

use vdens::cli;
use vdens::cli::config::Config;
use vdens::cli::vde_switch::VdeSwitch;
use vdens::error::Result;
use vdens::logging;
use vdens::output::report;
use vdens::switch::{self, EXIT_FAILURE, PROGRAM};
use vdens::sys::privilege;
use vdens::sys::process::fail_on_panic;

fn main() {
    fail_on_panic(PROGRAM, EXIT_FAILURE, life);
}

fn life() {
    let status = privilege::refuse_raised().and_then(|()| run());
    exit(status.unwrap_or_else(|error| {
        report(PROGRAM, error);
        EXIT_FAILURE
    }));
}

fn run() -> Result<i32> {
    let words = VdeSwitch::long_options(std::env::args_os());
    let cli: VdeSwitch = cli::parse(PROGRAM, EXIT_FAILURE, words.into_iter());
    let common = cli.common();
    let config = Config::load(common.config.as_deref())?;
    logging::start(&common.logging(&config))?;
    config.complain();
    switch::run(&cli, &config)
}
