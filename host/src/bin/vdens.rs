//! `vdens`: a command in a network namespace of its own, plugged into virtual Ethernet.

use std::process::exit;

use vdens::cli::{self, Vdens};
use vdens::config::Config;
use vdens::error::{EXIT_FAILURE, Error, report};
use vdens::loader::SearchPath;
use vdens::logging::{self, Choice};
use vdens::session::Session;
use vdens::supervisor::{self, Failure};
use vdens::{check, listing, scaffold};

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

/// Does what is asked for about plugins; `None` if that is nothing.
fn plugin_task(cli: &Vdens, config: &Config) -> Result<Option<i32>, Error> {
    let path = SearchPath::new(&cli.common.plugin_dir, config)?;
    if cli.list_plugins {
        listing::run(&path, cli.json)?;
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
    let config = Config::load(cli.common.config.as_deref())?;
    logging::start(&Choice::new(&cli.common, &config))?;
    config.complain();
    if let Some(status) = plugin_task(cli, &config)? {
        return Ok(status);
    }
    let session = Session::new(cli, &config)?;
    supervisor::run(&session.plan, session.jobs)
}
