//! The way to the process that executes orders: a supervisor, or a [`Service`](super::Service).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::ipc::{Channel, Order, Reply, Request, malformed};

/// The result of an executed order.
#[derive(Debug)]
pub(crate) struct Executed {
    /// The panel's identity.
    pub(crate) panel: u64,
    /// The tap that was made, if one was.
    pub(crate) tap: Option<OwnedFd>,
}

/// Sends requests to the process that executes them.
///
/// A plugin's threads may send orders at the same time. A lock is held from an order to its reply,
/// so that no thread receives another thread's reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PanelClient(&'static Conversation);

/// Leaked, because plugins may send orders as long as the process lives.
#[derive(Debug)]
struct Conversation {
    channel: Channel<Request, Reply>,
    /// Locked from a request to its reply.
    turn: Mutex<()>,
    /// How long a reply may take. `None`: as long as the other process lives.
    limit: Option<Duration>,
}

impl PanelClient {
    /// A client of a supervisor. While the supervisor is stopped, for example with Ctrl-Z, requests
    /// wait.
    pub(crate) fn to_supervisor(channel: Channel<Request, Reply>) -> Self {
        Self::over(channel, None)
    }

    pub(super) fn over(channel: Channel<Request, Reply>, limit: Option<Duration>) -> Self {
        Self(Box::leak(Box::new(Conversation {
            channel,
            turn: Mutex::default(),
            limit,
        })))
    }

    /// Closes the channel. A thread that waits for a reply gets an error.
    pub(super) fn close(self) {
        self.0.channel.close();
    }

    /// Has an order executed.
    ///
    /// # Errors
    /// The order fails, or the other process has exited.
    pub(crate) fn execute(self, order: Order) -> Result<Executed> {
        match self.ask(&Request::Execute(order), &[])? {
            (Reply::Executed { panel }, mut fds) => Ok(Executed {
                panel,
                tap: fds.pop(),
            }),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Stores a descriptor for the worker that replaces this one, in place of the descriptor that
    /// was stored before.
    ///
    /// # Errors
    /// The other process is not a supervisor, which alone replaces workers.
    pub(crate) fn store_fd(self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        match self.0.limit {
            None => match self.ask(&Request::StoreFd, fd.as_slice())? {
                (Reply::Stored, _) => Ok(()),
                (other, _) => Err(unexpected(&other)),
            },
            Some(_) => Err(no_successor()),
        }
    }

    /// Sends a request and waits for the reply, which is not [`Reply::Failed`].
    fn ask(self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>)> {
        let Conversation {
            channel,
            turn,
            limit,
        } = self.0;
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        channel.send(request, fds)?;
        let reply = match *limit {
            None => channel.receive(),
            Some(limit) => channel.receive_within(limit),
        };
        // A late reply would be taken for the reply to the next request.
        let reply = reply.inspect_err(|_| channel.close())?;
        // A malformed reply leaves the channel usable: the next request has a reply of its own.
        match reply.well_formed()? {
            Some((Reply::Failed(error), _)) => Err(error),
            Some(reply) => Ok(reply),
            None => Err(Error::closed(
                "the process that executes panel requests has exited",
            )),
        }
    }
}

/// The error for storing a descriptor where no worker will replace the caller.
pub(crate) fn no_successor() -> Error {
    let message = "no worker will replace this one, so a descriptor cannot be stored";
    Error::new(ErrorKind::Unsupported, message)
}

/// The error for a reply that belongs to another request.
fn unexpected(reply: &Reply) -> Error {
    malformed(format_args!("{reply:?} does not answer the request"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::thread;

    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;
    use crate::ipc::{BridgeVlans, Received};

    fn bridge(ageing: u32) -> Order {
        Order::Bridge {
            bridge: "1n0".into(),
            ageing,
            vlans: BridgeVlans::Ignored,
        }
    }

    /// Answers each order for a bridge with its time of ageing. When two orders are there at once,
    /// it answers the second first.
    fn serve(channel: &Channel<Reply, Request>) {
        let next = || match channel.receive().unwrap() {
            Received::Message(Request::Execute(Order::Bridge { ageing, .. }), _) => Some(ageing),
            _ => None,
        };
        let answer = |ageing: u32| {
            let panel = ageing.into();
            channel.send(&Reply::Executed { panel }, &[]).unwrap();
        };
        while let Some(first) = next() {
            let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, 20u8).unwrap() == 1
                && let Some(second) = next()
            {
                answer(second);
            }
            answer(first);
        }
    }

    #[test]
    fn no_thread_receives_anothers_reply() {
        let (ours, theirs) = Channel::pair().unwrap();
        let client = PanelClient::over(ours, Some(Duration::from_secs(60)));
        let server = thread::spawn(move || serve(&theirs));
        let ask = move |thread: u32| {
            for n in 0..10 {
                let ageing = thread * 100 + n;
                let done = client.execute(bridge(ageing)).unwrap();
                assert_eq!(done.panel, u64::from(ageing));
            }
        };
        let threads: Vec<_> = (0..4).map(|n| thread::spawn(move || ask(n))).collect();
        let outcomes: Vec<_> = threads.into_iter().map(thread::JoinHandle::join).collect();
        client.close();
        server.join().unwrap();
        assert!(outcomes.iter().all(Result::is_ok));
    }

    #[test]
    fn a_malformed_reply_fails_one_request() {
        let (ours, theirs) = Channel::pair().unwrap();
        let client = PanelClient::over(ours, Some(Duration::from_secs(60)));
        let server = thread::spawn(move || {
            let stored =
                Channel::<&str, Request>::from(theirs.as_fd().try_clone_to_owned().unwrap());
            stored.receive().unwrap();
            stored.send(&"nonsense", &[]).unwrap();
            drop(stored);
            serve(&theirs);
        });
        let error = client.execute(bridge(1)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
        assert_eq!(client.execute(bridge(2)).unwrap().panel, 2);
        client.close();
        server.join().unwrap();
    }
}
