//! `vdectl`: what is running, whether this machine can run it, and the plugins.

use std::process::exit;

use vdens::cli::config::Config;
use vdens::cli::vdectl::lab::LabTask;
use vdens::cli::vdectl::{
    CaptureOptions, ForwardTask, LinkTask, PluginTask, SwitchTask, Task, Vdectl,
};
use vdens::cli::{self, Common};
use vdens::error::{EXIT_FAILURE, Result};
use vdens::lab::commands::change::{self, Lifetime};
use vdens::lab::commands::verdict::Format;
use vdens::lab::commands::{events, exec, status, test};
use vdens::lab::file;
use vdens::logging;
use vdens::output::report;
use vdens::plugins::{check, list, scaffold};
use vdens::sys::privilege;
use vdens::sys::process::fail_on_panic;
use vdens::tools::forward::{self, Change};
use vdens::tools::link::{self, Request};
use vdens::tools::sessions;
use vdens::tools::status::{client, text};
use vdens::tools::{capture, doctor, graph, top};

const PROGRAM: &str = "vdectl";

fn main() {
    fail_on_panic(PROGRAM, EXIT_FAILURE, || {
        let status = privilege::refuse_raised()
            .and_then(|()| run(&cli::parse(PROGRAM, EXIT_FAILURE, std::env::args_os())));
        exit(status.unwrap_or_else(|error| {
            report(PROGRAM, error);
            EXIT_FAILURE
        }));
    });
}

fn run(Vdectl { task, common }: &Vdectl) -> Result<i32> {
    // These start what others wait for, and must be quick.
    if let Task::Session(task) = task {
        logging::start(&common.logging(&Config::default()))?;
        return sessions::run(task, common.quiet);
    }
    if let Task::Complete { words } = task {
        return cli::complete::run(words).map(|()| 0);
    }
    // The doctor examines the configuration itself, and goes on when it is wrong.
    if let Task::Doctor { json } = task {
        return doctor::run(common, *json);
    }
    let config = Config::load(common.config.as_deref())?;
    logging::start(&common.logging(&config))?;
    config.complain();
    let path = common.search_path(&config)?;
    match task {
        Task::Status { json } => show_status(common, *json)?,
        Task::Complete { .. } | Task::Doctor { .. } | Task::Session(_) => {}
        Task::Graph {
            name,
            format,
            output,
        } => graph::run(name.as_deref(), *format, output.as_deref())?,
        Task::Top {
            once,
            json,
            interval,
        } => {
            let mode = match (json, once) {
                (true, _) => top::Mode::Json,
                (false, true) => top::Mode::Once,
                (false, false) => top::Mode::Live,
            };
            return top::run(mode, *interval);
        }
        Task::Forward { of, task } => match task {
            ForwardTask::List { json } => forward::list(*of, *json)?,
            ForwardTask::Add { forwards } => forward::change(*of, &Change::Add, forwards)?,
            ForwardTask::Remove { forwards } => forward::change(*of, &Change::Remove, forwards)?,
        },
        Task::Lab { task } => return lab(task, common, &config),
        Task::Link { task } => change_link(task)?,
        Task::Switch { task } => match task {
            SwitchTask::Show { json, switch, what } => {
                vdens::tools::switch::show(switch.as_deref(), *what, *json)?
            }
            SwitchTask::Set { switch, words } => vdens::tools::switch::set(switch, words)?,
        },
        Task::Capture(options) => start_capture(options, common)?,
        Task::Plugin { task } => match task {
            PluginTask::List { json } => list::run(&path, *json)?,
            PluginTask::Check { json, plugin, vnls } => {
                let vnls = vnls.iter().map(cli::text).collect::<Result<_>>()?;
                return check::run(plugin, vnls, &path, *json);
            }
            PluginTask::New { dir, api, language } => {
                let api = api.as_deref();
                scaffold::run(dir, *language, api, &path)?
            }
        },
    }
    Ok(0)
}

/// Runs, changes and shows labs.
fn lab(task: &LabTask, common: &Common, config: &Config) -> Result<i32> {
    match task {
        LabTask::Up { file, json } => {
            let name = change::up(file, common.plugins(config)?, Lifetime::Own)?;
            if *json {
                status::show(Some(&name), true, PROGRAM)?;
            }
        }
        LabTask::Down { name } => change::down(name.as_deref())?,
        LabTask::Apply { file, json } => change::apply(file, *json, &common.plugins(config)?)?,
        LabTask::Status { name, json } => status::show(name.as_deref(), *json, PROGRAM)?,
        LabTask::Exec {
            json,
            nodes,
            command,
        } => {
            return exec::exec(nodes, command, *json);
        }
        LabTask::Test { lab, format, json } => {
            let format = if *json { Format::Json } else { *format };
            return test::test(lab, format, &common.plugins(config)?);
        }
        LabTask::Events { name } => events::events(name.as_deref())?,
        LabTask::Enter { node } => return exec::enter(node),
        LabTask::Validate { json, file } => {
            return file::validate(file, *json, &common.plugins(config)?);
        }
        LabTask::Schema => file::schema::schema()?.print()?,
    }
    Ok(0)
}

/// Captures until the user ends it.
fn start_capture(options: &CaptureOptions, common: &Common) -> Result<()> {
    let places = capture::places(&options.links, options.lab.as_deref())?;
    let options = capture::Options {
        write: options.write.clone(),
        snaplen: options.snaplen,
        filter: options.filter.clone(),
        ring: options.ring,
        files: options.files,
    };
    capture::run(&places, &options, common.quiet)
}

/// Shows or changes links.
fn change_link(task: &LinkTask) -> Result<()> {
    match task {
        LinkTask::Show { json, link } => link::show(link.as_deref(), *json),
        LinkTask::Set {
            replace,
            link,
            keys,
        } => {
            let request = Request::Set {
                replace: *replace,
                words: keys.clone(),
            };
            link::change(std::slice::from_ref(link), &request)
        }
        LinkTask::Down { links } => link::change(links, &Request::Down),
        LinkTask::Up { links } => link::change(links, &Request::Up),
    }
}

/// Lists what is running.
fn show_status(common: &Common, json: bool) -> Result<()> {
    let answers = client::ask_all()?;
    if json {
        return text::json(&answers)?.print();
    }
    if answers.is_empty() && !common.quiet {
        report(PROGRAM, "nothing of yours is running");
    }
    text::text(&answers).print()
}
