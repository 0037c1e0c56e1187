//! A process's side of `vdectl status`: a socket that its poll loop serves.
//!
//! A process that cannot make a socket, because the directory is full or read-only, runs without
//! one.

use std::os::fd::{AsFd, BorrowedFd};

use serde::Serialize;

use super::directory;
use crate::error::Result;
use crate::ipc::listener::{BACKLOG, Listener};
use crate::ipc::{Channel, Nothing, ReportReply};

/// The socket of this process.
#[derive(Debug)]
pub(crate) struct Server {
    listener: Listener,
    /// Connections that wait for an answer.
    askers: Vec<Channel<ReportReply, Nothing>>,
}

impl Server {
    /// Makes the socket, if that is possible.
    pub(crate) fn start() -> Option<Self> {
        directory()
            .and_then(|directory| Listener::start(&directory))
            .inspect_err(|error| log::info!("vdectl status will not see this: {error}"))
            .map(|listener| Self {
                listener,
                askers: Vec::new(),
            })
            .ok()
    }

    /// Accepts connections, and closes those that are too many. Returns whether there is one to
    /// answer.
    ///
    /// # Errors
    /// The socket is of no more use.
    pub(crate) fn accept(&mut self) -> Result<bool> {
        while let Some(asker) = self.listener.accept()? {
            if self.askers.len() < BACKLOG {
                self.askers.push(Channel::from(asker));
            }
        }
        Ok(!self.askers.is_empty())
    }

    /// Answers all connections with a process.
    pub(crate) fn answer(&mut self, process: &impl Serialize) {
        for asker in self.askers.drain(..) {
            if let Err(error) = asker.send_report(process) {
                log::debug!("vdectl status: {error}");
            }
        }
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
