//! `vdens`: a command in a network namespace of its own, plugged into virtual Ethernet.

use std::io::{Write, stdout};
use std::process::exit;

use vdens::cli::{self, Vdens};
use vdens::config::Config;
use vdens::doctor;
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
    check_mode(cli)?;
    if cli.doctor {
        return Ok(doctor::run(&cli.common, cli.json)?);
    }
    let config = Config::load(cli.common.config.as_deref())?;
    logging::start(&Choice::new(&cli.common, &config))?;
    config.complain();
    if cli.status {
        return Ok(show_status(cli)?);
    }
    let session = Session::new(cli, &config)?;
    supervisor::run(&session.plan, session.jobs)
}

/// What does something else than run a command stands alone.
fn check_mode(cli: &Vdens) -> Result<()> {
    let modes = [(cli.status, "--status"), (cli.doctor, "--doctor")];
    let mut modes = modes.iter().filter(|(is_wanted, _)| *is_wanted);
    match (modes.next(), modes.next(), cli.rest.first()) {
        (None, ..) if cli.json => Err(Error::usage("--json goes with --status and --doctor only")),
        (Some((_, mode)), Some((_, other)), _) => Err(Error::usage(format!(
            "{mode} and {other} exclude each other"
        ))),
        (Some((_, mode)), None, Some(word)) => {
            let message = format!("'{}' stands behind {mode}", word.to_string_lossy());
            Err(Error::usage(message).hint("it takes nothing but --json"))
        }
        _ => Ok(()),
    }
}

/// Lists what is running.
fn show_status(cli: &Vdens) -> Result<i32> {
    let answers = client::ask_all()?;
    let text = match cli.json {
        true => format!("{:#}\n", text::json(&answers)),
        false => text::text(&answers),
    };
    // A closed standard output is nobody's failure.
    let _ = stdout().write_all(text.as_bytes());
    Ok(0)
}
