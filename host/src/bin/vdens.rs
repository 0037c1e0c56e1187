//! `vdens`: a command in a network namespace of its own, plugged into virtual Ethernet.

use std::process::exit;

use vdens::cli::config::Config;
use vdens::cli::plan::Session;
use vdens::cli::{self, Vdens};
use vdens::error::{EXIT_FAILURE, Error, Result, report};
use vdens::logging::{self, Choice};
use vdens::plugins::loader::SearchPath;
use vdens::plugins::{check, list, scaffold};
use vdens::session::{self, Failure};
use vdens::sys::privilege;
use vdens::sys::process::fail_on_panic;
use vdens::tools::doctor;
use vdens::tools::status::{client, text};

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

/// Does what is asked for instead of running a command; `None` if that is nothing.
fn task(cli: &Vdens, config: &Config) -> Result<Option<i32>> {
    let path = SearchPath::new(&cli.common.plugin_dir, config)?;
    if cli.status {
        show_status(cli)?;
    } else if cli.list_plugins {
        list::run(&path, cli.json)?;
    } else if let Some(dir) = &cli.new_plugin {
        scaffold::run(dir, cli.api.as_deref(), &path)?;
    } else if let Some(plugin) = &cli.check_plugin {
        return check::run(plugin, &cli.rest, &path).map(Some);
    } else {
        return Ok(None);
    }
    Ok(Some(0))
}

fn run(cli: &Vdens) -> Result<i32, Failure> {
    check_task(cli)?;
    if cli.doctor {
        return Ok(doctor::run(&cli.common, cli.json)?);
    }
    let config = Config::load(cli.common.config.as_deref())?;
    logging::start(&Choice::new(&cli.common, &config))?;
    config.complain();
    if let Some(status) = task(cli, &config)? {
        return Ok(status);
    }
    let session = Session::new(cli, &config)?;
    session::run(&session.plan, session.jobs)
}

/// What does something else than run a command stands alone.
fn check_task(cli: &Vdens) -> Result<()> {
    let tasks = [
        (cli.status, "--status", "nothing but --json"),
        (cli.doctor, "--doctor", "nothing but --json"),
        (cli.list_plugins, "--list-plugins", "nothing but --json"),
        (
            cli.new_plugin.is_some(),
            "--new-plugin",
            "nothing but --api",
        ),
        (cli.check_plugin.is_some(), "--check-plugin", ""),
    ];
    let mut wanted = tasks.iter().filter(|(is_wanted, ..)| *is_wanted);
    match (wanted.next(), wanted.next(), cli.rest.first()) {
        (Some((_, task, _)), Some((_, other, _)), _) => {
            let message = format!("{task} and {other} exclude each other");
            Err(Error::usage(message))
        }
        (Some((_, task, takes)), None, Some(word)) if !takes.is_empty() => {
            let message = format!("'{}' stands behind {task}", word.to_string_lossy());
            Err(Error::usage(message).hint(format!("it takes {takes}")))
        }
        (task, _, _) if cli.json && task.is_none_or(|(_, _, takes)| !takes.contains("--json")) => {
            let message = "--json goes with --status, --doctor and --list-plugins only";
            Err(Error::usage(message))
        }
        _ => Ok(()),
    }
}

/// Lists what is running.
fn show_status(cli: &Vdens) -> Result<()> {
    let answers = client::ask_all()?;
    if cli.json {
        return text::json(&answers)?.print();
    }
    if answers.is_empty() && !cli.common.quiet {
        report(PROGRAM, "nothing of yours is running");
    }
    text::text(&answers).print()
}
