//! `vdectl lab events`.

use std::io::{self, Write};

use super::find;
use crate::error::{Error, Result};
use crate::ipc::lab_socket;
use crate::ipc::{FromLab, MAX_REPORT, ReportReply, ToLab, read_report};
use crate::output::{Line, written};

/// Prints what happens in a lab, a JSON object a line, until the lab ends. Without a name, there
/// must be one lab only.
///
/// # Errors
/// No such lab runs, or standard output does not take a line.
pub fn events(name: Option<&str>) -> Result<()> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => find::the_lab(None)?.lab.name,
    };
    let channel = lab_socket::connect_to(&name)?;
    channel.send(&ToLab::Watch, &[])?;
    while let Some((message, mut fds)) = channel.receive()?.well_formed()? {
        let text = match (message, fds.pop()) {
            (FromLab::Report(ReportReply::File), Some(fd)) => read_report(fd, MAX_REPORT)?,
            (FromLab::Failed(error), _) => return Err(error),
            _ => return Err(Error::closed("an event was lost")),
        };
        let mut out = io::stdout().lock();
        written(writeln!(out, "{}", Line(text)).and_then(|()| out.flush()))?;
    }
    Ok(())
}
