//! `vde_plug`: a cable between two virtual networks, or between one and a stream.

use std::ffi::OsString;
use std::process::exit;

use vdens::cli::config::Config;
use vdens::cli::{self, VdePlug};
use vdens::error::Result;
use vdens::logging;
use vdens::output::report;
use vdens::plug::{self, login};
use vdens::sys::privilege;
use vdens::sys::process::fail_on_panic;

const PROGRAM: &str = "vde_plug";

fn main() {
    fail_on_panic(PROGRAM, plug::EXIT_FAILURE, life);
}

fn life() {
    let words: Vec<OsString> = std::env::args_os().collect();
    let status = privilege::refuse_raised().and_then(|()| run(words));
    exit(status.unwrap_or_else(|error| {
        report(PROGRAM, error);
        plug::EXIT_FAILURE
    }));
}

fn run(words: Vec<OsString>) -> Result<i32> {
    // login(1), su(1) and sshd(8) start a login shell under a name that begins with '-'.
    let is_login = words
        .first()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"-"));
    let cli: VdePlug = cli::parse(PROGRAM, plug::EXIT_FAILURE, words.into_iter());
    if let Some(command) = &cli.command {
        return login::run(PROGRAM, command);
    }
    if is_login {
        return login::refuse_terminal();
    }
    let config = Config::load(cli.common.config.as_deref())?;
    logging::start(&cli.common.logging(&config))?;
    config.complain();
    plug::run(&cli, &config)
}
