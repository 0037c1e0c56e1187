//! The whole switch, driven through the link and by clients that speak the protocol by hand.

mod managing;
mod mixtures;
mod storms;
mod tree;
mod vlans;

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;
use vdens_plugin_kit::negotiation::{Event, Negotiation, Received};
use vdens_plugin_kit::wire::control::{REPLY_LEN, Reply, Request, RequestKind};
use vdens_plugin_kit::wire::hello::{Body, Nonce, SUPER_PREFIX};
use vdens_plugin_kit::{
    Batch, Host, Link, MAX_LEGACY_FRAME, MIN_FRAME, Offloads, OpenOptions, PanelAddress, State,
    VNET_HEADER_LEN,
};

use crate::Kind;
use crate::config::Config;
use crate::queue::MAX_FRAMES;
use crate::switch::Switch;
use crate::tree::is_for_bridges;

const BROADCAST: u8 = 0xff;

/// A frame of `len` bytes from station `source` to station `destination`.
fn frame(destination: u8, source: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(&mac(destination));
    frame[6..12].copy_from_slice(&mac(source));
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

fn mac(station: u8) -> [u8; 6] {
    match station {
        BROADCAST => [0xff; 6],
        n => [2, 0, 0, 0, 0, n],
    }
}

fn tagged(destination: u8, source: u8, vlan: u16) -> Vec<u8> {
    let mut frame = frame(destination, source, 60);
    frame[12..14].copy_from_slice(&[0x81, 0]);
    frame[14..16].copy_from_slice(&vlan.to_be_bytes());
    frame
}

struct Bench {
    root: TempDir,
    path: PathBuf,
    switch: Switch,
    /// What the host has received.
    host: Vec<Vec<u8>>,
}

impl Bench {
    fn new(keys: &str) -> Self {
        Self::of(Kind::Switch, keys)
    }

    fn of(kind: Kind, keys: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("sw");
        let argument = format!("{}{keys}", path.display());
        let config = Config::new(kind, &argument, &OpenOptions::default()).unwrap();
        Self {
            root,
            path,
            switch: Switch::open(&config, Host::without_services()).unwrap(),
            host: Vec::new(),
        }
    }

    fn is_ready(&self) -> bool {
        let mut fds = [PollFd::new(self.switch.fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    /// Lets the switch work until it has nothing to do. Returns how many calls that took.
    fn run(&mut self) -> usize {
        let mut batch = Batch::new();
        for calls in 0..10_000 {
            if !self.is_ready() {
                return calls;
            }
            batch.clear();
            self.switch.recv(&mut batch.rx()).unwrap();
            let frames = batch.tx(0);
            self.host
                .extend(frames.frames().map(|f| f.bytes().to_vec()));
        }
        panic!("the switch does not come to rest");
    }

    fn send(&mut self, frame: &[u8]) -> u64 {
        let mut batch = Batch::new();
        assert!(batch.rx().push(frame));
        assert_eq!(self.switch.send(&mut batch.tx(0)).unwrap(), 1);
        batch.take_dropped()
    }

    fn connect(&self, socket: &str) -> UnixStream {
        let stream = UnixStream::connect(self.path.join(socket)).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// The answer to `bytes` on a new control connection: `None` if there is none yet, empty if the
    /// connection was closed.
    fn ask(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut stream = self.connect("ctl");
        stream.write_all(bytes).unwrap();
        self.run();
        answer(&mut stream)
    }

    fn try_plug(&mut self, port: u32) -> Option<Client> {
        self.try_plug_as(port, "test")
    }

    fn try_plug_as(&mut self, port: u32, description: &str) -> Option<Client> {
        self.try_plug_through("ctl", port, description)
    }

    fn try_plug_through(&mut self, socket: &str, port: u32, description: &str) -> Option<Client> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = self.root.path().join(format!("client{n}"));
        let data = UnixDatagram::bind(&path).unwrap();
        data.set_nonblocking(true).unwrap();
        let mut control = self.connect(socket);
        let request = Request {
            kind: RequestKind::New,
            port,
            socket: path,
            description: description.as_bytes().to_vec(),
        };
        control.write_all(&request.encode().unwrap()).unwrap();
        self.run();
        let reply = answer(&mut control)?;
        if reply.is_empty() {
            return None;
        }
        assert_eq!(reply.len(), REPLY_LEN);
        let peer = Reply::decode(&reply).unwrap().socket;
        data.connect(&peer).unwrap();
        Some(Client {
            control,
            data,
            peer,
        })
    }

    fn plug(&mut self) -> Client {
        self.try_plug(0).unwrap()
    }

    fn stations(&mut self) -> usize {
        self.switch.fabric().fdb.len()
    }
}

fn answer(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut bytes = [0; 1000];
    match stream.read(&mut bytes) {
        Ok(n) => Some(bytes[..n].to_vec()),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => None,
        Err(_) => Some(Vec::new()),
    }
}

struct Client {
    control: UnixStream,
    data: UnixDatagram,
    peer: PathBuf,
}

impl Client {
    fn send(&self, frame: &[u8]) {
        assert_eq!(self.data.send(frame).unwrap(), frame.len());
    }

    fn recv(&self) -> Option<Vec<u8>> {
        self.receive(10_000)
    }

    fn receive(&self, longest: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; longest];
        let len = self.data.recv(&mut bytes).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }

    fn drain(&self) -> usize {
        std::iter::from_fn(|| self.recv()).count()
    }
}

#[test]
fn unknown_to_all_known_to_one() {
    let mut bench = Bench::new("");
    let (a, b, c) = (bench.plug(), bench.plug(), bench.plug());
    let hello = frame(2, 1, 60);
    a.send(&hello);
    bench.run();
    assert_eq!(b.recv(), Some(hello.clone()));
    assert_eq!(c.recv(), Some(hello.clone()));
    assert_eq!(a.recv(), None, "not back");
    assert_eq!(bench.host, [hello]);
    bench.host.clear();

    let back = frame(1, 2, 1514);
    b.send(&back);
    bench.run();
    assert_eq!(a.recv(), Some(back));
    a.send(&frame(2, 1, 60));
    bench.run();
    assert_eq!(b.drain(), 1);
    assert_eq!((c.recv(), bench.host.len()), (None, 0));

    c.send(&frame(BROADCAST, 3, 60));
    bench.run();
    assert_eq!((a.drain(), b.drain(), c.drain()), (1, 1, 0));
    assert_eq!(bench.host.len(), 1);
}

#[test]
fn a_hub_sends_everything_to_all_others() {
    let mut bench = Bench::of(Kind::Hub, "");
    let (a, b, c) = (bench.plug(), bench.plug(), bench.plug());
    for (client, station) in [(&a, 1), (&b, 2), (&c, 3)] {
        client.send(&frame(BROADCAST, station, 60));
    }
    bench.run();
    for client in [&a, &b, &c] {
        assert_eq!(client.drain(), 2);
    }
    bench.host.clear();
    let private = frame(2, 1, 1514);
    a.send(&private);
    a.send(&frame(1, 1, 60));
    bench.run();
    assert_eq!(
        (a.drain(), b.recv(), c.recv()),
        (0, Some(private.clone()), Some(private))
    );
    assert_eq!((b.drain(), c.drain(), bench.host.len()), (1, 1, 2));
    bench.send(&frame(1, 9, 60));
    assert_eq!((a.drain(), b.drain(), c.drain()), (1, 1, 1));
    assert_eq!(bench.stations(), 0);
    thread::sleep(Duration::from_millis(1100));
    assert!(!bench.is_ready(), "it has no reason to wake up");
}

#[test]
fn the_local_port_is_a_port() {
    let mut bench = Bench::new("");
    let (a, b) = (bench.plug(), bench.plug());
    bench.send(&frame(1, 9, 60));
    assert_eq!((a.drain(), b.drain()), (1, 1));
    a.send(&frame(9, 1, 60));
    bench.run();
    assert_eq!((b.drain(), bench.host.len()), (0, 1));
    bench.send(&frame(1, 9, 60));
    assert_eq!((a.drain(), b.drain()), (1, 0));
    assert_eq!(bench.send(&frame(1, 9, MAX_LEGACY_FRAME + 1)), 1, "counted");
    assert_eq!(a.drain(), 0);
    bench.send(&frame(9, 9, 60));
    assert_eq!((a.drain(), b.drain(), bench.host.len()), (0, 0, 1));
}

#[test]
fn a_client_of_ours_is_greeted_and_falls_back_to_user_space() {
    let mut bench = Bench::new("");
    bench.switch.other_side(State::UP);
    assert_eq!(bench.switch.state(), State::UP.with_offloads(Offloads::ALL));
    let legacy = bench.plug();
    assert_eq!(legacy.recv(), None);
    let ours = bench.try_plug_as(0, OURS).unwrap();
    let (mut negotiation, events) = meet(&ours);
    assert_eq!(
        events,
        [Event::Proven, Event::Offloads],
        "the switch takes everything"
    );
    assert!(negotiation.peer_panel_address().is_none());
    announce(&ours, &mut negotiation, Body::Declined);
    ours.send(&frame(BROADCAST, 1, 60));
    bench.run();
    assert_eq!((legacy.drain(), bench.host.len()), (1, 1), "no message");
    // A client's messages are for the switch alone, a legacy client's too.
    negotiation.announce(Body::Declined);
    legacy.send(&negotiation.next_message().unwrap());
    bench.run();
    assert_eq!(ours.drain(), 0, "no client sends in the switch's name");
}

/// The description of a client whose nonce is 1.
const OURS: &str = "ours vdens=4026532345:1";

/// The events of a client of ours, described as [`OURS`], after the switch's greetings.
fn meet(client: &Client) -> (Negotiation, Vec<Event>) {
    meet_with(client, None)
}

/// The same of a client with this panel address.
fn meet_with(client: &Client, own: Option<PanelAddress>) -> (Negotiation, Vec<Event>) {
    let mut negotiation = Negotiation::as_client(Nonce(1)).with_panel_address(own);
    let mut events = Vec::new();
    while let Some(message) = client.recv() {
        match negotiation.receive(&message) {
            Received::Message(event) => events.extend(event),
            Received::Frame if is_for_bridges(&message) => {}
            other => panic!("{other:?}"),
        }
    }
    (negotiation, events)
}

/// Makes a client announce `body`.
fn announce(client: &Client, negotiation: &mut Negotiation, body: Body) {
    negotiation.announce(body);
    send_messages(client, negotiation);
}

/// Sends a client's messages.
fn send_messages(client: &Client, negotiation: &mut Negotiation) {
    while let Some(message) = negotiation.next_message() {
        client.send(&message);
        negotiation.message_sent();
    }
}

#[test]
fn super_frames_without_a_frame_are_dropped_and_counted() {
    for kind in [Kind::Switch, Kind::Hub] {
        let mut bench = Bench::of(kind, "");
        let ours = bench.try_plug_as(0, OURS).unwrap();
        announce(&ours, &mut meet(&ours).0, Body::Declined);
        let shortest = SUPER_PREFIX.len() + VNET_HEADER_LEN + MIN_FRAME;
        for len in SUPER_PREFIX.len()..shortest {
            ours.send(&[&SUPER_PREFIX[..], &[0; 100]].concat()[..len]);
        }
        ours.send(&frame(BROADCAST, 1, 60));
        bench.run();
        assert_eq!(bench.host.len(), 1);
        let mut ports = bench.switch.fabric().ports.iter_mut();
        let counters = ports.next().unwrap().1.counters;
        let expected = ((shortest - SUPER_PREFIX.len()) as u64, 1);
        assert_eq!(
            (counters.refused.malformed, counters.traffic.in_frames),
            expected
        );
    }
}

#[test]
fn a_plugged_client_s_port_is_idle() {
    let mut bench = Bench::new("");
    let _bridge = bench.plug_bridge();
    let (legacy, ours) = (bench.plug(), bench.try_plug_as(0, OURS).unwrap());
    let (mut negotiation, _) = meet(&ours);
    assert!(negotiation.peer_panel_address().is_some());
    ours.send(&frame(BROADCAST, 1, 60));
    bench.run();
    assert_eq!((legacy.drain(), bench.stations()), (1, 1));
    announce(&ours, &mut negotiation, Body::Plugged);
    ours.send(&frame(BROADCAST, 1, 60));
    bench.run();
    assert_eq!((legacy.drain(), bench.stations()), (0, 0));
    legacy.send(&frame(BROADCAST, 2, 60));
    legacy.send(&frame(1, 2, 60));
    bench.run();
    assert_eq!((ours.drain(), legacy.drain()), (0, 0));
    assert_eq!(bench.host.len(), 3);
}

#[test]
fn only_a_client_that_was_told_of_the_bridge_is_believed_to_be_plugged_into_it() {
    let mut bench = Bench::new("");
    let (legacy, ours) = (bench.plug(), bench.try_plug_as(0, OURS).unwrap());
    let (mut negotiation, _) = meet(&ours);
    announce(&ours, &mut negotiation, Body::Plugged);
    bench.run();
    legacy.send(&frame(BROADCAST, 2, 60));
    bench.run();
    assert_eq!(ours.drain(), 1, "there is no bridge: it is served");

    let _bridge = bench.plug_bridge();
    let told = bench.try_plug_as(0, OURS).unwrap();
    meet(&told);
    let mut forger = Negotiation::as_switch(Nonce(1), None, Nonce(77));
    announce(&told, &mut forger, Body::Plugged);
    bench.run();
    legacy.send(&frame(BROADCAST, 2, 60));
    bench.run();
    assert_eq!(told.drain(), 1, "it does not know the switch's nonce");
}

#[test]
fn a_batch_of_all_kinds_keeps_its_order() {
    let mut bench = Bench::new("");
    let (a, b, c) = (bench.plug(), bench.plug(), bench.plug());
    b.send(&frame(BROADCAST, 2, 60));
    c.send(&frame(BROADCAST, 3, 60));
    bench.run();
    for client in [&a, &b, &c] {
        client.drain();
    }
    bench.host.clear();
    for len in 60..90 {
        let destination = [2, BROADCAST, 3, 77][len % 4];
        a.send(&frame(destination, 1, len));
    }
    bench.run();
    let lens = |client: &Client| -> Vec<usize> {
        let frames = std::iter::from_fn(|| client.recv());
        frames.map(|frame| frame.len()).collect()
    };
    let expected = |own: usize| -> Vec<usize> {
        let is_due = |len: &usize| len % 4 == own || len % 2 == 1;
        (60..90).filter(is_due).collect()
    };
    assert_eq!(lens(&b), expected(0));
    assert_eq!(lens(&c), expected(2));
    assert_eq!(bench.host.len(), 15);
}

#[test]
fn a_station_that_moves_is_followed() {
    let mut bench = Bench::new("");
    let (a, b, c) = (bench.plug(), bench.plug(), bench.plug());
    for client in [&a, &b] {
        client.send(&frame(BROADCAST, 1, 60));
        bench.run();
    }
    for client in [&a, &b, &c] {
        client.drain();
    }
    c.send(&frame(1, 3, 60));
    bench.run();
    assert_eq!((a.drain(), b.drain()), (0, 1));
}

#[test]
fn vlans_do_not_alias() {
    let mut bench = Bench::new("");
    let (a, b, c) = (bench.plug(), bench.plug(), bench.plug());
    a.send(&tagged(BROADCAST, 1, 5));
    b.send(&tagged(BROADCAST, 1, 5 + 1024));
    bench.run();
    for client in [&a, &b, &c] {
        client.drain();
    }
    for (vlan, to_a, to_b) in [(5, 1, 0), (1029, 0, 1), (2053, 1, 1)] {
        c.send(&tagged(1, 3, vlan));
        bench.run();
        assert_eq!((a.drain(), b.drain()), (to_a, to_b), "VLAN {vlan}");
    }
}

#[test]
fn long_frames_pass_and_too_long_ones_do_not() {
    let mut bench = Bench::new("");
    let (a, b) = (bench.plug(), bench.plug());
    for len in [14, 1518, 9018, MAX_LEGACY_FRAME] {
        let long = frame(2, 1, len);
        a.send(&long);
        bench.run();
        assert_eq!(b.recv(), Some(long));
    }
    for bad in [&[][..], &[1; 13], &[1; MAX_LEGACY_FRAME + 1], &[1; 60_000]] {
        a.send(bad);
        bench.run();
        assert_eq!(b.recv(), None);
    }
    let ports = &mut bench.switch.fabric().ports;
    let malformed: u64 = ports
        .iter_mut()
        .map(|(_, p)| p.counters.refused.malformed)
        .sum();
    assert_eq!(malformed, 4);
    a.send(&frame(2, 1, 60));
    bench.run();
    assert_eq!(b.drain(), 1, "the port still works");
}

#[test]
fn ports_have_the_numbers_asked_for() {
    let mut bench = Bench::new("");
    let name = |client: &Client| client.peer.file_name().unwrap().to_owned();
    let three = bench.try_plug(3).unwrap();
    assert_eq!(name(&three), "fd3");
    assert!(three.peer.starts_with(&bench.path));
    assert!(bench.try_plug(3).is_none(), "taken");
    let clients: Vec<Client> = (0..3).map(|_| bench.plug()).collect();
    let names: Vec<_> = clients.iter().map(name).collect();
    assert_eq!(names, ["fd1", "fd2", "fd4"]);
    let highest = bench.try_plug(0x00ff_ffff).unwrap();
    assert_eq!(name(&highest), "fd16777215");
    drop(three);
    bench.run();
    assert!(!bench.path.join("fd3").exists());
    assert_eq!(name(&bench.plug()), "fd3");
}

#[test]
fn a_port_goes_with_its_client() {
    let mut bench = Bench::new("");
    let (a, b) = (bench.plug(), bench.plug());
    a.send(&frame(BROADCAST, 1, 60));
    b.send(&frame(BROADCAST, 2, 60));
    bench.run();
    assert_eq!(bench.stations(), 2);
    let peer = a.peer.clone();
    drop(a);
    bench.run();
    assert_eq!(bench.stations(), 1);
    assert!(!peer.exists());

    // One that keeps its control stream and closes its data socket is found out by the next frame.
    let Client {
        mut control,
        data,
        peer,
    } = b;
    drop(data);
    bench.run();
    bench.send(&frame(BROADCAST, 9, 60));
    bench.run();
    assert!(!peer.exists());
    assert_eq!(answer(&mut control), Some(Vec::new()));
}

#[test]
fn clients_that_ask_for_nonsense_are_turned_away() {
    let mut bench = Bench::new("");
    let a = bench.plug();
    let socket = bench.root.path().join("mine");
    let _data = UnixDatagram::bind(&socket).unwrap();
    let encoded = |kind, socket: &Path| {
        let request = Request {
            kind,
            port: 0,
            socket: socket.to_owned(),
            description: Vec::new(),
        };
        request.encode().unwrap()
    };
    let good = encoded(RequestKind::New, &socket);
    let mut wrong_magic = good.clone();
    wrong_magic[0] ^= 1;
    let mut wrong_version = good.clone();
    wrong_version[4] ^= 1;
    let mut endless = good.clone();
    endless.resize(4000, b'x');
    for bytes in [
        encoded(RequestKind::Management, &socket),
        encoded(RequestKind::New, Path::new("/no/such/socket")),
        encoded(RequestKind::New, Path::new("mine")),
        wrong_magic,
        wrong_version,
        endless,
    ] {
        assert_eq!(bench.ask(&bytes), Some(Vec::new()));
    }
    assert_eq!(bench.ask(&good[..100]), None, "half a request may go on");
    for _ in 0..200 {
        drop(bench.connect("ctl"));
    }
    bench.run();
    let idle: Vec<UnixStream> = (0..200).map(|_| bench.connect("ctl")).collect();
    bench.run();
    assert!(
        bench
            .ask(&good)
            .is_some_and(|reply| reply.len() == REPLY_LEN)
    );
    drop(idle);
    bench.run();
    assert!(!bench.is_ready());
    bench.send(&frame(BROADCAST, 9, 60));
    assert_eq!(a.drain(), 1);
    let left = bench.path.read_dir().unwrap().count();
    assert_eq!(left, 2, "ctl and one port");
}

#[test]
fn chatter_on_the_control_stream_is_ignored() {
    let mut bench = Bench::new("");
    let mut a = bench.plug();
    a.control.write_all(&[7; 5000]).unwrap();
    bench.run();
    bench.send(&frame(BROADCAST, 9, 60));
    assert_eq!(a.drain(), 1);
}

#[test]
fn a_port_that_never_reads_costs_the_others_nothing() {
    let mut bench = Bench::new("");
    let (sender, stuck) = (bench.plug(), bench.plug());
    let (c, d) = (bench.plug(), bench.plug());
    for (client, station) in [(&sender, 1), (&stuck, 2), (&c, 3), (&d, 4)] {
        client.send(&frame(BROADCAST, station, 60));
        bench.run();
    }
    for client in [&sender, &stuck, &c, &d] {
        client.drain();
    }
    const SENT: usize = 3000;
    for n in 0..SENT {
        let mut bytes = frame(2, 1, 1514);
        bytes[14..18].copy_from_slice(&(n as u32).to_be_bytes());
        sender.send(&bytes);
        c.send(&frame(4, 3, 1514));
        bench.run();
        assert_eq!(d.drain(), 1);
    }
    assert!(!bench.is_ready(), "nothing to do while it is stuck");
    let mut received = Vec::new();
    while let Some(bytes) = stuck.recv() {
        received.push(u32::from_be_bytes(bytes[14..18].try_into().unwrap()));
        bench.run();
    }
    assert!(received.len() >= MAX_FRAMES && received.len() < SENT);
    let in_order: Vec<u32> = (0..received.len() as u32).collect();
    assert_eq!(received, in_order, "what was kept is the oldest, in order");
    let ports = &mut bench.switch.fabric().ports;
    let dropped: u64 = ports.iter_mut().map(|(_, p)| p.counters.dropped).sum();
    assert_eq!(dropped as usize, SENT - received.len());
    sender.send(&frame(2, 1, 60));
    bench.run();
    assert_eq!(stuck.drain(), 1, "it works again");
    assert!(!bench.is_ready());
}

#[test]
fn sixty_four_ports() {
    let mut bench = Bench::new("");
    let clients: Vec<Client> = (0..64).map(|_| bench.plug()).collect();
    for (station, client) in clients.iter().enumerate() {
        client.send(&frame(BROADCAST, station as u8, 60));
    }
    bench.run();
    assert!(clients.iter().all(|client| client.drain() == 63));
    assert_eq!((bench.host.len(), bench.stations()), (64, 64));
    for (station, client) in clients.iter().enumerate() {
        client.send(&frame((station as u8 + 1) % 64, station as u8, 60));
    }
    bench.run();
    assert!(clients.iter().all(|client| client.drain() == 1));
    assert_eq!(bench.host.len(), 64);
    drop(clients);
    bench.run();
    assert_eq!(bench.path.read_dir().unwrap().count(), 1);
    assert_eq!(bench.stations(), 0);
}

#[test]
fn no_frame_for_the_host_is_lost_and_no_port_starves() {
    let mut bench = Bench::new("");
    let clients: Vec<Client> = (0..8).map(|_| bench.plug()).collect();
    bench.send(&frame(BROADCAST, 99, 60));
    for _ in 0..40 {
        for (station, client) in clients.iter().enumerate() {
            client.send(&frame(99, station as u8, 60));
        }
    }
    let mut batch = Batch::new();
    for _ in 0..8 {
        batch.clear();
        bench.switch.recv(&mut batch.rx()).unwrap();
        let station = batch.tx(0).frame(0).unwrap().bytes()[11];
        bench.host.push(vec![station]);
        assert_eq!(batch.len(), 32);
    }
    bench.host.sort();
    bench.host.dedup();
    assert_eq!(bench.host.len(), 8, "each port was served once");
    bench.host.clear();
    bench.run();
    assert_eq!(bench.host.len(), 8 * 8);
}

#[test]
fn stations_are_forgotten_and_then_it_sleeps() {
    let mut bench = Bench::new("[expiretime=1]");
    let a = bench.plug();
    a.send(&frame(BROADCAST, 1, 60));
    bench.run();
    assert_eq!(bench.stations(), 1);
    let start = Instant::now();
    while bench.stations() > 0 && start.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(20));
        bench.run();
    }
    assert_eq!(bench.stations(), 0);
    assert!(start.elapsed() >= Duration::from_millis(900));
    assert_eq!(bench.switch.fabric().fdb.next_sweep(), None);
    thread::sleep(Duration::from_millis(1500));
    assert!(!bench.is_ready());
}

#[test]
fn nothing_is_left() {
    let mut bench = Bench::new("");
    let clients: Vec<Client> = (0..3).map(|_| bench.plug()).collect();
    let Bench {
        path, switch, root, ..
    } = bench;
    assert!(path.exists());
    drop(switch);
    assert!(!path.exists());
    for mut client in clients {
        // A process that another test is about to start holds a copy of everything for a moment.
        client.control.set_nonblocking(false).unwrap();
        let limit = Some(Duration::from_secs(5));
        client.control.set_read_timeout(limit).unwrap();
        assert_eq!(answer(&mut client.control), Some(Vec::new()));
    }
    drop(root);
}

/// Runs in a process of its own, because the limit is the process's.
#[test]
fn out_of_descriptors() {
    const MARK: &str = "VDENS_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(MARK).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::out_of_descriptors"])
            .env(MARK, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let mut bench = Bench::new("");
    let (a, b) = (bench.plug(), bench.plug());
    let limit = libc::rlimit {
        rlim_cur: 40,
        rlim_max: 40,
    };
    // SAFETY: a plain system call on a live value.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    // Connected, but not accepted: these use up the descriptors on the client's side.
    let mut waiting = Vec::new();
    while let Ok(stream) = UnixStream::connect(bench.path.join("ctl")) {
        waiting.push(stream);
    }
    let calls = bench.run();
    assert!(calls < 100, "{calls} calls");
    a.send(&frame(BROADCAST, 1, 60));
    bench.run();
    assert_eq!(b.drain(), 1, "the ports it has work");
    drop(waiting);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1200) {
        bench.run();
        thread::sleep(Duration::from_millis(10));
    }
    assert!(bench.try_plug(0).is_some(), "it recovers");
}
