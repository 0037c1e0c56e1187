//! `vdectl lab up`, `apply` and `down`.

use std::env;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::find;
use crate::error::{Error, Result, system};
pub use crate::ipc::background::Lifetime;
use crate::ipc::background::{self, Starter};
use crate::ipc::lab_socket;
use crate::ipc::{FromLab, ToLab};
use crate::lab::file;
use crate::lab::spawn::Inheritance;
use crate::lab::supervisor::{Request, Supervisor};
use crate::output::Text;
use crate::plugins::host_services::InstalledPlugins;
use crate::sys::runtime;
use crate::sys::signals::Signals;

/// Starts the lab of a file, and returns its name when it runs.
///
/// # Errors
/// The file is wrong, or the lab cannot be made. Nothing is left of it.
pub fn up(path: &Path, plugins: InstalledPlugins, lifetime: Lifetime) -> Result<String> {
    let request = request(path, &plugins)?;
    runtime::complain();
    background::start(|starter| supervise(&request, plugins, starter, lifetime).map(|()| 0))?;
    Ok(request.lab.name)
}

fn supervise(
    request: &Request,
    plugins: InstalledPlugins,
    starter: &mut Starter,
    lifetime: Lifetime,
) -> Result<()> {
    let signals = Signals::block()?;
    let inheritance = Inheritance::take()?;
    // Relative paths in the file start at its directory.
    if let Some(dir) = Path::new(&request.file).parent() {
        env::set_current_dir(dir).map_err(|error| Error::path("enter", dir, &error))?;
    }
    let ready = || starter.announce(lifetime);
    Supervisor::run(request, inheritance, plugins, &signals, ready)
}

/// Makes the lab that runs what its edited file says, and returns when it is so. Prints what
/// changes, as lines or as a JSON list.
///
/// # Errors
/// The file is wrong, no such lab runs, or something cannot be made as the file says. What does not
/// depend on that is changed.
pub fn apply(path: &Path, json: bool, plugins: &InstalledPlugins) -> Result<()> {
    let request = request(path, plugins)?;
    let channel = lab_socket::connect_to(&request.lab.name)?;
    let text =
        serde_json::to_vec(&request).map_err(|error| Error::io("write the lab", &error.into()))?;
    let memory = memfd_create("vdens-lab", MFdFlags::MFD_CLOEXEC)
        .map_err(system("make a file in memory"))?;
    let mut memory = File::from(memory);
    memory
        .write_all(&text)
        .map_err(|error| Error::io("write the lab", &error))?;
    channel.send(&ToLab::Apply, &[memory.as_fd()])?;
    match channel.receive()?.well_formed()? {
        Some((FromLab::Done(changes), _)) if json => Text::json(&changes)?.print(),
        Some((FromLab::Done(changes), _)) => changes.into_iter().collect::<Text>().print(),
        Some((FromLab::Failed(error), _)) => Err(error),
        Some((FromLab::Report(_), _)) => Err(crate::ipc::malformed("it is no answer")),
        None => Err(Error::closed("the lab has ended")),
    }
}

/// Ends a lab, and returns when it has ended. Without a name, there must be one lab only.
///
/// # Errors
/// No such lab runs.
pub fn down(name: Option<&str>) -> Result<()> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => find::the_lab(None)?.lab.name,
    };
    let channel = lab_socket::connect_to(&name)?;
    channel.send(&ToLab::Down, &[])?;
    // The end of the connection is the answer.
    while channel.receive()?.well_formed()?.is_some() {}
    Ok(())
}

/// Reads a file and checks it.
fn request(path: &Path, plugins: &InstalledPlugins) -> Result<Request> {
    let absolute: PathBuf = std::path::absolute(path)
        .map_err(|error| Error::path("find the lab file", path, &error))?;
    Ok(Request {
        lab: file::read(path, plugins)?,
        file: absolute.display().to_string(),
    })
}
