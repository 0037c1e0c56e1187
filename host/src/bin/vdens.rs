//! `vdens`: a command in a network namespace of its own, plugged into virtual Ethernet.

use std::io::{Write, stdout};
use std::process::exit;

use vdens::cli::{self, Vdens};
use vdens::config::Config;
use vdens::error::{EXIT_FAILURE, Error, Result, report};
use vdens::logging::{self, Choice};
use vdens::session::Session;
use vdens::status::{client, text};
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
    let config = Config::load(cli.common.config.as_deref())?;
    logging::start(&Choice::new(&cli.common, &config))?;
    config.complain();
    if cli.status {
        return Ok(show_status(cli)?);
    }
    if cli.json {
        return Err(Error::usage("--json goes with --status only").into());
    }
    let session = Session::new(cli, &config)?;
    supervisor::run(&session.plan, session.jobs)
}

/// Lists what is running.
fn show_status(cli: &Vdens) -> Result<i32> {
    if let Some(word) = cli.rest.first() {
        let message = format!("'{}' stands behind --status", word.to_string_lossy());
        return Err(Error::usage(message).hint("it takes nothing but --json"));
    }
    let answers = client::ask_all()?;
    let text = match cli.json {
        true => format!("{:#}\n", text::json(&answers)),
        false => text::text(&answers),
    };
    // A closed standard output is nobody's failure.
    let _ = stdout().write_all(text.as_bytes());
    Ok(0)
}
