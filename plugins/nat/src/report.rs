//! The channel between the plugin and the proxy. The proxy sends lines of JSON. The plugin sends
//! bytes, each of which asks whether the proxy still runs ([`crate::heartbeat`]).
//!
//! The proxy never waits for the plugin, which may be stopped: what the socket does not take is
//! lost, in whole lines.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

/// The question of the plugin.
pub(crate) const PING: u8 = b'\n';

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// All that goes through the network is served from now on.
    Serving,
    /// The proxy runs.
    Alive,
    /// The proxy ends, and why.
    Failed(String),
    /// The proxy ends because this kernel can run no gateway, and what it lacks.
    Lacks(String),
    /// Something that a person may want to know.
    Warning(String),
    /// For `vdectl status`.
    Status(BTreeMap<String, String>),
}

/// What a kernel has for a gateway, as `vdectl doctor` reads it.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Probe {
    /// Everything.
    Complete,
    /// Not all of it, and what that means.
    Lacks(String),
    /// Too little for a gateway, and what.
    CannotRun(String),
}

impl Report {
    /// That the proxy ends because of an error.
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::Unsupported => Self::Lacks(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// The proxy's end of the channel.
pub(crate) struct Plugin {
    socket: UnixStream,
    /// What the socket has not yet taken of the last line.
    rest: Vec<u8>,
}

impl Plugin {
    /// The plugin at the other end of a socket.
    ///
    /// # Errors
    /// It is no socket.
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let rest = Vec::new();
        Ok(Self { socket, rest })
    }

    /// Sends a report; `false` if it is lost, because the plugin does not read.
    ///
    /// # Errors
    /// The plugin is gone.
    pub(crate) fn tell(&mut self, report: &Report) -> io::Result<bool> {
        self.flush()?;
        if !self.rest.is_empty() {
            return Ok(false);
        }
        self.rest = serde_json::to_vec(report)?;
        self.rest.push(b'\n');
        self.flush()?;
        Ok(true)
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.rest.is_empty() {
            match self.socket.write(&self.rest) {
                Ok(count) => drop(self.rest.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Answers the plugin's questions; `false` if the plugin has ended.
    ///
    /// # Errors
    /// The socket is broken.
    pub(crate) fn answer(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 64];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return Ok(false),
                Ok(_) => drop(self.tell(&Report::Alive)?),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Plugin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// See [`crate::fuzz::messages`].
pub(crate) fn fuzz(input: &[u8]) -> Result<(), String> {
    crate::fuzz::again::<Report>(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_that_does_not_read_costs_lines_but_no_time() {
        let (plugin, proxy) = UnixStream::pair().unwrap();
        let mut to_plugin = Plugin::new(proxy).unwrap();
        let report = Report::Warning("x".repeat(1000));
        let sent = (0..10_000)
            .filter(|_| to_plugin.tell(&report).unwrap())
            .count();
        assert!((1..10_000).contains(&sent), "{sent}");
        plugin.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        let _ = (&plugin).read_to_end(&mut bytes);
        assert!(to_plugin.tell(&Report::Alive).unwrap());
        let _ = (&plugin).read_to_end(&mut bytes);
        let lines: Vec<Report> = bytes
            .split_inclusive(|&byte| byte == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(lines.len(), sent + 1);
        assert_eq!(lines.last(), Some(&Report::Alive));
    }

    #[test]
    fn questions_are_answered_until_the_plugin_ends() {
        let (mut plugin, proxy) = UnixStream::pair().unwrap();
        let mut to_plugin = Plugin::new(proxy).unwrap();
        assert!(to_plugin.answer().unwrap());
        plugin.write_all(&[PING, PING]).unwrap();
        assert!(to_plugin.answer().unwrap());
        let mut bytes = [0; 64];
        let count = plugin.read(&mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"\"alive\"\n");
        drop(plugin);
        assert!(!to_plugin.answer().unwrap());
    }
}
