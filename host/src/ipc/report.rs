//! Reports: JSON of any length in a file in memory, whose descriptor is sent. Sending one takes a
//! single call that does not block, however long the report is.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Serialize;

use super::{Channel, ReportReply};
use crate::error::{Error, ErrorKind, Result, system};

/// The longest report, in bytes. The report of a switch that knows as many stations as it can has
/// 8 MiB.
pub(crate) const MAX_REPORT: u64 = 16 << 20;

impl<S: Serialize + From<ReportReply>, R> Channel<S, R> {
    /// Sends a report, or why there is none.
    ///
    /// # Errors
    /// Neither can be sent: the system has no memory left.
    pub(crate) fn send_report(&self, report: &impl Serialize) -> Result<()> {
        write_report(report)
            .and_then(|file| self.send(&ReportReply::File.into(), &[file.as_fd()]))
            .or_else(|error| self.send(&ReportReply::None(error.to_string()).into(), &[]))
    }
}

/// A file in memory with a report as JSON.
fn write_report(report: &impl Serialize) -> Result<File> {
    let cannot = |error| Error::io("write a report", &error);
    let text = serde_json::to_vec(report).map_err(|error| cannot(error.into()))?;
    if text.len() as u64 > MAX_REPORT {
        return Err(too_long(MAX_REPORT));
    }
    let fd = memfd_create("vdens-report", MFdFlags::MFD_CLOEXEC)
        .map_err(system("make a file in memory"))?;
    let mut file = File::from(fd);
    file.write_all(&text).map_err(cannot)?;
    Ok(file)
}

/// Reads a report that was received, of at most `limit` bytes.
///
/// # Errors
/// It cannot be read, is longer, or is no file in memory.
pub(crate) fn read_report(fd: OwnedFd, limit: u64) -> Result<String> {
    let cannot = |error| Error::io("read a report", &error);
    // Only a file in memory has seals (fcntl(2)). Reading another kind of file could block, or
    // never end.
    fcntl(&fd, FcntlArg::F_GET_SEALS)
        .map_err(|_| Error::new(ErrorKind::Protocol, "a report is not in a file in memory"))?;
    let mut file = File::from(fd);
    // The sender wrote it through the same open file, and left the offset at its end.
    file.rewind().map_err(cannot)?;
    let mut text = String::new();
    let read = file.take(limit.saturating_add(1)).read_to_string(&mut text);
    match read.map_err(cannot)? as u64 > limit {
        true => Err(too_long(limit)),
        false => Ok(text),
    }
}

fn too_long(limit: u64) -> Error {
    let message = format!("a report has more than {limit} bytes");
    Error::new(ErrorKind::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::{FromWorker, Nothing, Received};

    #[test]
    fn a_report_arrives() {
        let (a, b) = Channel::<FromWorker, Nothing>::pair().unwrap();
        let report = "x".repeat(100_000);
        a.send_report(&report).unwrap();
        let Received::Message(FromWorker::Report(ReportReply::File), mut fds) =
            b.receive().unwrap()
        else {
            panic!("no report");
        };
        let text = read_report(fds.pop().unwrap(), MAX_REPORT).unwrap();
        assert_eq!(text, format!("\"{report}\""));
    }

    #[test]
    fn a_report_that_cannot_be_made_is_answered() {
        use std::os::unix::ffi::OsStrExt;
        let (a, b) = Channel::<ReportReply, Nothing>::pair().unwrap();
        let unspeakable = std::path::Path::new(std::ffi::OsStr::from_bytes(b"/\xff"));
        a.send_report(&unspeakable).unwrap();
        let endless = "x".repeat(MAX_REPORT as usize);
        a.send_report(&endless).unwrap();
        for words in ["UTF-8", "more than 16777216 bytes"] {
            match b.receive().unwrap() {
                Received::Message(ReportReply::None(why), _) => {
                    assert!(why.contains(words), "{why}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_does_not_end_is_not_read() {
        let open = |path: &str| OwnedFd::from(File::open(path).unwrap());
        let (pipe, _to) = nix::unistd::pipe().unwrap();
        for endless in [open("/dev/zero"), open("/proc/self/maps"), pipe] {
            let error = read_report(endless, MAX_REPORT).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
        }
        let memory = |size| {
            let file = File::from(memfd_create("x", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(size).unwrap();
            OwnedFd::from(file)
        };
        assert_eq!(read_report(memory(10), 10).unwrap(), "\0".repeat(10));
        let sparse = read_report(memory(1 << 50), 10).unwrap_err();
        assert!(sparse.message.contains("more than 10 bytes"), "{sparse}");
    }
}
