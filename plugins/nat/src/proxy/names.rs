//! Names: questions that clients ask at the gateway's address, asked of the host's name servers.
//!
//! A question goes to the first server; if it has not answered in time, to the next, and so on. The
//! servers are those of the host's resolv.conf ([`crate::resolv`]), read again when it changes, or
//! those the VNL names. A server that cannot be reached at all is passed over at once.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use slab::Slab;
use socket2::{Domain, Socket, Type};

use super::datagram::{self, LONGEST};
use super::poll::{Poll, Token};
use super::spare::not_last;
use crate::resolv::{self, Resolv};

/// How long a server has to answer before the next one is asked.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long a question lives.
const LIMIT: Duration = Duration::from_secs(10);

/// The length of a message's header (RFC 1035, section 4.1.1), in bytes.
const HEADER: usize = 12;

/// The most questions at once.
const QUESTIONS: usize = 1024;

struct Question {
    client: SocketAddr,
    /// The address inside that was asked.
    asked: SocketAddr,
    bytes: Vec<u8>,
    socket: Socket,
    /// How many servers have been asked.
    tries: usize,
    since: Instant,
    last: Instant,
}

/// The questions that are open.
pub(crate) struct Names {
    fixed: Vec<IpAddr>,
    servers: Vec<SocketAddr>,
    /// When the host's files were last changed.
    changed: Option<[Option<SystemTime>; 2]>,
    questions: Slab<Question>,
    buffer: Vec<u8>,
    /// How many questions found no answer.
    pub unanswered: u64,
}

impl Names {
    /// Names as the servers in `fixed` know them; without any, the host's.
    pub(crate) fn new(fixed: Vec<IpAddr>) -> Self {
        let mut names = Self {
            fixed,
            servers: Vec::new(),
            changed: None,
            questions: Slab::new(),
            buffer: vec![0; LONGEST],
            unanswered: 0,
        };
        names.refresh();
        names
    }

    /// The servers, in the order in which they are asked.
    pub(crate) fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// Reads the host's servers if they have changed.
    pub(crate) fn refresh(&mut self) {
        if !self.fixed.is_empty() {
            self.servers = self.fixed.iter().map(|&ip| (ip, 53).into()).collect();
            return;
        }
        let changed = Some(resolv::changed());
        if changed != self.changed {
            self.changed = changed;
            self.servers = Resolv::read().servers;
        }
    }

    /// Asks what a client asks.
    pub(crate) fn ask(&mut self, poll: &Poll, client: SocketAddr, asked: SocketAddr, bytes: &[u8]) {
        self.refresh();
        if self.questions.len() >= QUESTIONS || bytes.len() < HEADER {
            self.unanswered += 1;
            return;
        }
        let now = Instant::now();
        let Some(Ok(socket)) = self
            .servers
            .iter()
            .map(|server| ask(*server, bytes))
            .find(Result::is_ok)
        else {
            self.unanswered += 1;
            return;
        };
        let index = self.questions.insert(Question {
            client,
            asked,
            bytes: bytes.to_vec(),
            socket,
            tries: 1,
            since: now,
            last: now,
        });
        if poll
            .read(&self.questions[index].socket, Token::Names(index))
            .is_err()
        {
            self.questions.remove(index);
        }
    }

    /// A server has answered: the client, the address that it asked, and the answer.
    pub(crate) fn on_answer(&mut self, index: usize) -> Option<(SocketAddr, SocketAddr, &[u8])> {
        let question = self.questions.get_mut(index)?;
        match datagram::receive(&question.socket, &mut self.buffer) {
            Ok(received)
                if received.length >= HEADER && self.buffer[..2] == question.bytes[..2] =>
            {
                let question = self.questions.remove(index);
                Some((
                    question.client,
                    question.asked,
                    &self.buffer[..received.length],
                ))
            }
            Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH)
                if question.tries < self.servers.len() =>
            {
                // The next server is asked without waiting for this one.
                question.last = question
                    .since
                    .checked_sub(PATIENCE)
                    .unwrap_or(question.since);
                None
            }
            _ => None,
        }
    }

    /// Asks further servers, and gives up in the end.
    pub(crate) fn expire(&mut self, now: Instant, poll: &Poll) {
        let late: Vec<_> = self
            .questions
            .iter()
            .filter(|(_, q)| now.duration_since(q.last) >= PATIENCE)
            .map(|(index, _)| index)
            .collect();
        for index in late {
            let question = &mut self.questions[index];
            let over = now.duration_since(question.since) >= LIMIT;
            let next = self.servers.get(question.tries % self.servers.len().max(1));
            if let Some(Ok(socket)) = next
                .filter(|_| !over)
                .map(|&next| ask(next, &question.bytes))
                && poll.read(&socket, Token::Names(index)).is_ok()
            {
                question.socket = socket;
                question.tries += 1;
                question.last = now;
            } else {
                self.unanswered += 1;
                self.questions.remove(index);
            }
        }
    }

    /// When [`Names::expire`] has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.questions.iter().map(|(_, q)| q.last + PATIENCE).min()
    }
}

/// Sends a question to a server. Each has a socket, so a port of its own, which a forger would have
/// to guess (RFC 5452).
fn ask(server: SocketAddr, bytes: &[u8]) -> io::Result<Socket> {
    let domain = Domain::for_address(server);
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(domain, kind, None).and_then(not_last)?;
    socket.connect(&server.into())?;
    socket.send(bytes)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_has_its_time_and_a_question_has_an_end() {
        let poll = Poll::new().unwrap();
        let servers = ["127.0.0.1", "127.0.0.2"].map(|ip| ip.parse().unwrap());
        let mut names = Names::new(servers.into());
        let client = "10.0.2.15:1001".parse().unwrap();
        let asked = "10.0.2.3:53".parse().unwrap();
        assert_eq!(names.due(), None);
        names.ask(&poll, client, asked, &[0; HEADER]);
        let start = names.questions[0].since;
        let tries = |names: &Names| names.questions.iter().map(|(_, q)| q.tries).max();
        for turn in 0..LIMIT.as_millis().div_ceil(PATIENCE.as_millis()) as u32 {
            assert_eq!(tries(&names), Some(turn as usize + 1));
            let due = start + PATIENCE * (turn + 1);
            assert_eq!(names.due(), Some(due));
            names.expire(due - Duration::from_millis(1), &poll);
            assert_eq!(tries(&names), Some(turn as usize + 1));
            names.expire(due, &poll);
        }
        assert_eq!((tries(&names), names.due()), (None, None));
        assert_eq!(names.unanswered, 1);
    }

    #[test]
    fn what_is_no_question_is_not_asked() {
        let poll = Poll::new().unwrap();
        let mut names = Names::new(vec!["127.0.0.1".parse().unwrap()]);
        let client = "10.0.2.15:1001".parse().unwrap();
        names.ask(&poll, client, client, &[0; HEADER - 1]);
        assert_eq!((names.unanswered, names.questions.len()), (1, 0));
    }
}
