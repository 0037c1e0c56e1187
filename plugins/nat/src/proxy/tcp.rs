//! TCP: connections from inside, each joined to one outside.
//!
//! # Theory of operation
//!
//! A client's first packet waits in the gateway's queue while the proxy connects to its destination
//! (`Connecting`). When that is answered, the packet goes on: to the listening socket if the
//! destination accepted, else to a rule that refuses it as the destination did. The connected
//! socket waits for the kernel to accept the client's connection (`Connected`), then both are a
//! [`Flow`]. Without a queue, the client's connection is accepted first, and reset if the
//! destination refuses.
//!
//! Sockets are waited for by edges: a flow remembers whether each can be read and written, and asks
//! the kernel only for what can succeed. While a stream waits for room to write, the kernel does
//! not tell of further bytes to read: a third of the wake-ups for each gibibyte.
//!
//! A flow that has more to move than its turn allows goes to the end of the line (`turns`), so a
//! bulk transfer does not starve others.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use slab::Slab;
use socket2::{Domain, SockRef, Socket, Type};

use super::destination::{Destination, Destinations};
use super::names::Names;
use super::pipes::Pipes;
use super::poll::{Event, Poll, Token};
use super::stock::Stock;
use super::stream::{End, Next, Stream};
use crate::forward::Protocol;
use crate::gateway::rules::{MARK_HOST, MARK_NETWORK, MARK_PROHIBITED, MARK_RESET};
use crate::gateway::{Queue, Verdict, set_option};

/// How long a connected socket waits for the client's connection: its third packet is due after a
/// round trip inside.
const ACCEPT_LIMIT: Duration = Duration::from_secs(60);

/// The size of the buffer for what goes through no pipe, in bytes.
const SPARE: usize = 65_536;

/// Who connects, and where to.
type Ends = (SocketAddr, SocketAddr);

/// A connection that is being made outside.
struct Connecting {
    socket: Socket,
    ends: Ends,
    client: Client,
    /// Where else to connect if that fails.
    further: VecDeque<SocketAddr>,
}

/// How the client waits meanwhile.
enum Client {
    /// Its first packet is held.
    Held(u32),
    /// Its connection is accepted already.
    Accepted(Socket),
    /// It is outside, and its connection is accepted: the one that is being made is inside.
    Outside(Socket),
}

/// Two connections that are one.
struct Flow {
    inside: End<Socket>,
    outside: End<Socket>,
    out: Stream,
    back: Stream,
    /// Whether it waits for its turn.
    queued: bool,
}

/// All connections.
pub(crate) struct Tcp {
    listeners: Vec<Socket>,
    queue: Option<Queue>,
    bind: Option<IpAddr>,
    connecting: Slab<Connecting>,
    /// The connections that are being made for a held packet.
    pending: HashMap<Ends, usize>,
    /// The sockets that wait for the client's connection, and since when.
    connected: HashMap<Ends, (Socket, Instant)>,
    flows: Slab<Flow>,
    turns: VecDeque<usize>,
    pipes: Pipes,
    spare: Vec<u8>,
    /// The most connections.
    limit: usize,
    pub counts: Counts,
}

/// What has been so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub opened: u64,
    pub refused: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
    /// Connections that a limit refused.
    pub limited: u64,
}

impl Tcp {
    pub(crate) fn new(
        listeners: Vec<OwnedFd>,
        queue: Option<Queue>,
        bind: Option<IpAddr>,
        limit: usize,
        poll: &Poll,
    ) -> io::Result<Self> {
        for (index, listener) in listeners.iter().enumerate() {
            poll.read(listener, Token::Accept(index))?;
        }
        if let Some(queue) = &queue {
            poll.read(queue, Token::Queue)?;
        }
        Ok(Self {
            listeners: listeners.into_iter().map(Socket::from).collect(),
            queue,
            bind,
            connecting: Slab::new(),
            pending: HashMap::new(),
            connected: HashMap::new(),
            flows: Slab::new(),
            turns: VecDeque::new(),
            pipes: Pipes::default(),
            spare: vec![0; SPARE],
            limit,
            counts: Counts::default(),
        })
    }

    /// How many connections there are now.
    pub(crate) fn open(&self) -> usize {
        self.flows.len()
    }

    /// Whether a flow waits for its turn, so that the loop must not sleep.
    pub(crate) fn is_busy(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Gives each flow that waits its turn.
    pub(crate) fn turn(&mut self, poll: &Poll) {
        for _ in 0..self.turns.len() {
            let Some(index) = self.turns.pop_front() else {
                break;
            };
            if let Some(flow) = self.flows.get_mut(index) {
                flow.queued = false;
                self.pump(index, poll);
            }
        }
    }

    /// Looks after held connections.
    pub(crate) fn on_queue(
        &mut self,
        poll: &Poll,
        destinations: &Destinations,
        names: &Names,
    ) -> io::Result<()> {
        let mut held = Vec::new();
        loop {
            let Some(queue) = &self.queue else {
                return Ok(());
            };
            held.clear();
            if !queue.next(&mut held)? {
                return Ok(());
            }
            for packet in &held {
                let ends = (packet.from, packet.to);
                if self.pending.contains_key(&ends) {
                    self.answer(packet.packet, Verdict::Drop);
                } else if self.connected.contains_key(&ends) {
                    self.answer(packet.packet, Verdict::Accept(0));
                } else {
                    self.begin(poll, destinations, names, ends, Client::Held(packet.packet));
                }
            }
        }
    }

    /// Accepts connections from inside.
    pub(crate) fn on_accept(
        &mut self,
        family: usize,
        poll: &Poll,
        destinations: &Destinations,
        names: &Names,
    ) -> io::Result<()> {
        loop {
            let listener = &self.listeners[family];
            let (socket, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(()),
                    // The client is gone already.
                    Some(Errno::ECONNABORTED | Errno::EINTR) => continue,
                    // It waits until the next one comes; there may be a descriptor then.
                    Some(Errno::EMFILE | Errno::ENFILE) => {
                        self.counts.limited += 1;
                        return Ok(());
                    }
                    _ => return Err(error),
                },
            };
            socket.set_nonblocking(true)?;
            let to = socket.local_addr().ok().and_then(|a| a.as_socket());
            let Some((from, to)) = from.as_socket().zip(to) else {
                continue;
            };
            match self.connected.remove(&(from, to)) {
                Some((outside, _)) => self.join(poll, socket, outside)?,
                None => self.begin(
                    poll,
                    destinations,
                    names,
                    (from, to),
                    Client::Accepted(socket),
                ),
            }
        }
    }

    /// Starts to connect to where a client wants to.
    fn begin(
        &mut self,
        poll: &Poll,
        destinations: &Destinations,
        names: &Names,
        ends: Ends,
        client: Client,
    ) {
        let to = match destinations.find(ends.1) {
            Destination::Outside(to) => VecDeque::from([to]),
            Destination::Names => names.servers().iter().copied().collect(),
            Destination::Nowhere => return self.refuse(client, Errno::ECONNREFUSED),
        };
        if self.is_full() {
            self.counts.limited += 1;
            return self.refuse(client, Errno::ECONNREFUSED);
        }
        self.try_each(poll, ends, client, to, Errno::ECONNREFUSED);
    }

    /// Connects to the first of several destinations that can be tried. `error` is what the one
    /// before has met.
    fn try_each(
        &mut self,
        poll: &Poll,
        ends: Ends,
        client: Client,
        mut further: VecDeque<SocketAddr>,
        mut error: Errno,
    ) {
        while let Some(to) = further.pop_front() {
            match self.connect(to, !further.is_empty()) {
                Ok(socket) => return self.wait(poll, socket, ends, client, further),
                Err(met) => error = errno(&met),
            }
        }
        self.counts.limited += u64::from(error == Errno::EMFILE);
        self.refuse(client, error);
    }

    /// Begins to connect. `is_replaceable`: there is another destination, so it has little time.
    fn connect(&self, to: SocketAddr, is_replaceable: bool) -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(to), kind, None)?;
        prepare(&socket)?;
        if is_replaceable {
            set_option(
                &socket,
                libc::IPPROTO_TCP,
                libc::TCP_SYNCNT,
                &1_i32.to_ne_bytes(),
            )?;
        }
        if let Some(bind) = self.bind.filter(|bind| bind.is_ipv4() == to.is_ipv4()) {
            socket.bind(&SocketAddr::new(bind, 0).into())?;
        }
        match socket.connect(&to.into()) {
            Err(error) if errno(&error) != Errno::EINPROGRESS => Err(error),
            _ => Ok(socket),
        }
    }

    fn take(&mut self, index: usize) -> Connecting {
        let made = self.connecting.remove(index);
        if self.pending.get(&made.ends) == Some(&index) {
            self.pending.remove(&made.ends);
        }
        made
    }

    /// The far side of a connection that is being made has answered.
    pub(crate) fn on_connect(&mut self, event: Event, index: usize, poll: &Poll) -> io::Result<()> {
        if !event.writable || !self.connecting.contains(index) {
            return Ok(());
        }
        let error = self.connecting[index].socket.take_error()?;
        let made = self.take(index);
        if let Some(error) = error {
            self.try_each(poll, made.ends, made.client, made.further, errno(&error));
            return Ok(());
        }
        match made.client {
            Client::Held(packet) => {
                self.connected
                    .insert(made.ends, (made.socket, Instant::now()));
                self.answer(packet, Verdict::Accept(0));
                Ok(())
            }
            Client::Accepted(inside) => self.join(poll, inside, made.socket),
            Client::Outside(outside) => self.join(poll, made.socket, outside),
        }
    }

    /// Connects a client outside to a station inside, which sees it as `shown`.
    pub(crate) fn on_incoming(
        &mut self,
        outside: Socket,
        shown: SocketAddr,
        to: SocketAddr,
        poll: &Poll,
        stock: &mut Stock,
    ) {
        let _ = prepare(&outside);
        let client = Client::Outside(outside);
        if self.is_full() {
            self.counts.limited += 1;
            return self.refuse(client, Errno::ECONNREFUSED);
        }
        // A client's port may be taken: another forward leads it to the same station.
        let any = SocketAddr::new(shown.ip(), 0);
        let made = match stock.bound(Protocol::Tcp, shown) {
            Err(error) if errno(&error) == Errno::EADDRINUSE => stock.bound(Protocol::Tcp, any),
            made => made,
        };
        let connected = made.and_then(|socket| {
            match prepare(&socket).and_then(|()| socket.connect(&to.into())) {
                Err(error) if errno(&error) != Errno::EINPROGRESS => Err(error),
                _ => Ok(socket),
            }
        });
        match connected {
            Ok(socket) => self.wait(poll, socket, (shown, to), client, VecDeque::new()),
            Err(error) => self.refuse(client, errno(&error)),
        }
    }

    fn is_full(&self) -> bool {
        self.flows.len() + self.connecting.len() + self.connected.len() >= self.limit
    }

    /// Waits until a connection is made.
    fn wait(
        &mut self,
        poll: &Poll,
        socket: Socket,
        ends: Ends,
        client: Client,
        further: VecDeque<SocketAddr>,
    ) {
        let held = matches!(client, Client::Held(_));
        let index = self.connecting.insert(Connecting {
            socket,
            ends,
            client,
            further,
        });
        if held {
            self.pending.insert(ends, index);
        }
        if let Err(error) = poll.both(&self.connecting[index].socket, Token::Connect(index)) {
            let made = self.take(index);
            self.refuse(made.client, errno(&error));
        }
    }

    /// Makes two connections one.
    fn join(&mut self, poll: &Poll, inside: Socket, outside: Socket) -> io::Result<()> {
        let entry = self.flows.vacant_entry();
        let index = entry.key();
        let flow = entry.insert(Flow {
            inside: End::new(inside),
            outside: End::new(outside),
            out: Stream::new(),
            back: Stream::new(),
            queued: false,
        });
        self.counts.opened += 1;
        let watched = poll
            .both(&flow.inside.socket, Token::Inside(index))
            .and_then(|()| poll.both(&flow.outside.socket, Token::Outside(index)));
        match watched {
            Ok(()) => self.pump(index, poll),
            Err(_) => self.abort(index),
        }
        Ok(())
    }

    /// Something happened to one of a flow's sockets.
    pub(crate) fn on_flow(&mut self, event: Event, index: usize, poll: &Poll) {
        let Some(flow) = self.flows.get_mut(index) else {
            return;
        };
        let end = match event.token {
            Token::Inside(_) => &mut flow.inside,
            _ => &mut flow.outside,
        };
        end.readable |= event.readable;
        end.writable |= event.writable;
        end.is_ending |= event.is_ending;
        if !flow.queued {
            self.pump(index, poll);
        }
    }

    /// Moves what a flow can move.
    fn pump(&mut self, index: usize, poll: &Poll) {
        let Some(flow) = self.flows.get_mut(index) else {
            return;
        };
        let Flow {
            inside,
            outside,
            out,
            back,
            queued,
        } = flow;
        let (pipes, spare) = (&mut self.pipes, &mut self.spare[..]);
        let moved = (out.moved, back.moved);
        let sent = out.pump(inside, outside, pipes, spare);
        let got = sent.and_then(|sent| Ok((sent, back.pump(outside, inside, pipes, spare)?)));
        self.counts.bytes_out += out.moved - moved.0;
        self.counts.bytes_in += back.moved - moved.1;
        let ends = [
            (&*out, inside, Token::Inside(index)),
            (&*back, outside, Token::Outside(index)),
        ];
        for (stream, end, token) in ends {
            let is_muted = stream.is_blocked() && end.readable;
            if is_muted != end.is_muted && poll.change(&end.socket, token, !is_muted).is_ok() {
                end.is_muted = is_muted;
            }
        }
        match got {
            Err(_) => self.abort(index),
            Ok((Next::Ended, Next::Ended)) => self.remove(index),
            Ok((Next::More, _) | (_, Next::More)) => {
                *queued = true;
                self.turns.push_back(index);
            }
            Ok(_) => {}
        }
    }

    /// Ends a flow whose one connection is broken: the other is reset.
    fn abort(&mut self, index: usize) {
        if let Some(flow) = self.flows.get(index) {
            for socket in [&flow.inside.socket, &flow.outside.socket] {
                let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            }
        }
        self.remove(index);
    }

    fn remove(&mut self, index: usize) {
        let flow = self.flows.remove(index);
        flow.out.close(&mut self.pipes);
        flow.back.close(&mut self.pipes);
    }

    /// Refuses a client as the far side did.
    fn refuse(&mut self, client: Client, error: Errno) {
        self.counts.refused += 1;
        match client {
            Client::Held(packet) => self.answer(packet, refusal(error)),
            Client::Accepted(socket) | Client::Outside(socket) => {
                let _ = socket.set_linger(Some(Duration::ZERO));
            }
        }
    }

    fn answer(&self, packet: u32, verdict: Verdict) {
        if let Some(queue) = &self.queue {
            // A packet without an answer is dropped by the kernel when the queue ends.
            let _ = queue.answer(packet, verdict);
        }
    }

    /// Closes sockets whose client has never come.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.connected
            .retain(|_, (_, since)| now.duration_since(*since) < ACCEPT_LIMIT);
    }
}

/// Options of both sockets of a flow; one that is accepted has them from its listener.
pub(crate) fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)
}

/// How a client learns of an error that connecting met.
fn refusal(error: Errno) -> Verdict {
    match error {
        Errno::EHOSTUNREACH | Errno::EHOSTDOWN => Verdict::Accept(MARK_HOST),
        Errno::ENETUNREACH | Errno::EADDRNOTAVAIL => Verdict::Accept(MARK_NETWORK),
        Errno::EACCES | Errno::EPERM => Verdict::Accept(MARK_PROHIBITED),
        // The client's own patience decides.
        Errno::ETIMEDOUT => Verdict::Drop,
        _ => Verdict::Accept(MARK_RESET),
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
