//! The client against a switch of a few lines, for what a real one rarely does.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;
use vdens_plugin_kit::negotiation::{Event, Negotiation, Received};
use vdens_plugin_kit::wire::control::{MAX_REQUEST_LEN, Mark, Reply, Request};
use vdens_plugin_kit::wire::hello::{Body, Cable, Message, Nonce, SUPER_PREFIX};
use vdens_plugin_kit::{
    Batch, ErrorKind, Host, Link, MAX_FRAME, MAX_LEGACY_FRAME, MIN_FRAME, Offloads, OpenOptions,
    PanelAddress, Result, RxBatch, State, VnetHeader,
};

use crate::link::Vde;
use crate::target::Target;

/// The switch's end of a port.
struct FakePort {
    control: UnixStream,
    data: UnixDatagram,
    request: Request,
    /// The switch's side of the negotiation, if it is one of ours.
    negotiation: Option<Negotiation>,
}

impl FakePort {
    /// Sends the client the switch's messages.
    fn send_messages(&mut self) {
        while let Some(message) = self
            .negotiation
            .as_mut()
            .and_then(Negotiation::next_message)
        {
            self.data.send(&message).unwrap();
            self.negotiation.as_mut().unwrap().message_sent();
        }
    }
}

/// What a switch is.
enum Kind {
    Legacy,
    /// One of ours, with a bridge or none.
    Ours(Option<PanelAddress>),
    /// A legacy one, where another client sends this to the client of this nonce.
    Beset(fn(Nonce) -> Message),
}

fn open(vnl: &str) -> Result<Vde> {
    let target = Target::new(vnl, &OpenOptions::default())?;
    Vde::open(&target, vnl, Host::without_services())
}

fn open_in(directory: &TempDir, keys: &str) -> Result<Vde> {
    open(&format!("{}{keys}", directory.path().display()))
}

fn fail(vnl: &str) -> (ErrorKind, String) {
    let error = open(vnl).unwrap_err();
    let text = error.to_string();
    assert!(!text.contains('\n') && !error.hint.is_empty(), "{text}");
    (error.kind, text)
}

/// Accepts one client of the control socket `name` and answers it.
fn serve(directory: &Path, name: &str) -> JoinHandle<FakePort> {
    serve_as(directory, name, Kind::Legacy)
}

/// As [`serve`], as a switch of a kind.
fn serve_as(directory: &Path, name: &str, kind: Kind) -> JoinHandle<FakePort> {
    let listener = UnixListener::bind(directory.join(name)).unwrap();
    let socket = directory.join("fd1");
    thread::spawn(move || {
        let (mut control, _) = listener.accept().unwrap();
        let mut bytes = [0; MAX_REQUEST_LEN + 1];
        let n = control.read(&mut bytes).unwrap();
        let request = Request::decode(&bytes[..n]).unwrap();
        let data = UnixDatagram::bind(&socket).unwrap();
        data.connect(&request.socket).unwrap();
        data.set_nonblocking(true).unwrap();
        let (_, mark) = Mark::split(&request.description).unwrap();
        let mut port = FakePort {
            control,
            data,
            request,
            negotiation: None,
        };
        match kind {
            Kind::Legacy => {}
            Kind::Ours(panel_address) => {
                port.negotiation =
                    Some(Negotiation::as_switch(Nonce(2), panel_address, mark.nonce));
                port.send_messages();
            }
            Kind::Beset(message) => {
                port.data.send(&message(mark.nonce).encode()).unwrap();
            }
        }
        port.control
            .write_all(&Reply { socket }.encode().unwrap())
            .unwrap();
        port
    })
}

fn pair(keys: &str) -> (TempDir, Vde, FakePort) {
    pair_with(Kind::Legacy, keys)
}

/// A link to a switch of a kind.
fn pair_with(kind: Kind, keys: &str) -> (TempDir, Vde, FakePort) {
    let directory = tempfile::tempdir().unwrap();
    let switch = serve_as(directory.path(), "ctl", kind);
    let link = open_in(&directory, keys).unwrap();
    (directory, link, switch.join().unwrap())
}

fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

fn fill(mut batch: RxBatch<'_>, frames: usize, len: usize) {
    for _ in 0..frames {
        assert!(batch.push(&vec![7; len]));
    }
}

#[test]
fn frames_pass_both_ways() {
    let (directory, mut link, switch) = pair("[3/descr=mine]");
    assert_eq!(switch.request.port, 3);
    assert!(switch.request.description.starts_with(b"mine user="));
    let (_, mark) = Mark::split(&switch.request.description).unwrap();
    assert_eq!(mark.panel, 0);
    assert!(switch.request.socket.starts_with(directory.path()));
    assert!(
        !switch.request.socket.exists(),
        "the path is not needed any more"
    );
    assert!(link.state().carrier);
    assert!(!is_readable(link.fd()));

    for len in [0, 13, 14, 1514, MAX_LEGACY_FRAME, MAX_LEGACY_FRAME + 1] {
        switch.data.send(&vec![1; len]).unwrap();
    }
    assert!(is_readable(link.fd()));
    let mut batch = Batch::new();
    link.recv(&mut batch.rx()).unwrap();
    let lens: Vec<usize> = batch.tx(0).frames().map(|f| f.bytes().len()).collect();
    assert_eq!(lens, [14, 1514, MAX_LEGACY_FRAME]);
    assert!(!is_readable(link.fd()));

    assert_eq!(link.send(&mut batch.tx(1)).unwrap(), 2);
    let mut buffer = vec![0; 10_000];
    assert_eq!(switch.data.recv(&mut buffer).unwrap(), 1514);
    assert_eq!(switch.data.recv(&mut buffer).unwrap(), MAX_LEGACY_FRAME);
}

#[test]
fn messages_are_no_frames() {
    let elsewhere = Some(PanelAddress {
        panel: 7,
        place: "1n0".into(),
    });
    for kind in [Kind::Legacy, Kind::Ours(None), Kind::Ours(elsewhere)] {
        let (_directory, mut link, mut switch) = pair_with(kind, "");
        assert!(!link.wants_panel(), "there is none");
        link.other_side(State::UP);
        assert_eq!(link.state(), State::UP);
        assert!(!is_readable(link.fd()), "the hello has been read");
        if let Some(negotiation) = &mut switch.negotiation {
            negotiation.announce(Body::Declined);
        }
        switch.send_messages();
        switch.data.send(&[1; 60]).unwrap();
        let mut batch = Batch::new();
        link.recv(&mut batch.rx()).unwrap();
        assert_eq!(batch.len(), 1);
    }
}

#[test]
fn another_client_of_a_legacy_switch_cannot_pose_as_the_switch() {
    fn hello(to: Nonce) -> Message {
        let panel_address = Some(PanelAddress {
            panel: 7,
            place: "bridge".into(),
        });
        let body = Body::Hello {
            process: 1,
            panel_address,
        };
        let (cable, from) = (Cable::default(), Nonce(9));
        Message {
            cable,
            to,
            from,
            body,
        }
    }
    let status = |message| {
        let (_directory, link, _) = pair_with(Kind::Beset(message), "");
        link.status().peer.unwrap().description
    };
    assert_eq!(status(|_| hello(Nonce(3))), "a legacy switch");
    assert_eq!(status(|_| hello(Nonce::UNKNOWN)), "a legacy switch");
    assert_eq!(status(hello), "vdens", "who knows the nonce is the switch");
}

const TAKES_ALL: State = State::UP.with_offloads(Offloads::ALL);

/// TCP over IPv4, to be cut.
const TSO: VnetHeader = VnetHeader {
    flags: 1,
    gso_type: 1,
    hdr_len: 54,
    gso_size: 1000,
    csum_start: 34,
    csum_offset: 16,
};

fn wrapped(frame: &[u8]) -> Vec<u8> {
    [&SUPER_PREFIX[..], &TSO.to_bytes(), frame].concat()
}

#[test]
fn a_switch_of_ours_is_told_what_the_host_takes_and_sent_what_it_takes() {
    let (_directory, mut link, mut switch) = pair_with(Kind::Ours(None), "");
    let mut buffer = vec![0; 100_000];
    link.other_side(TAKES_ALL);
    link.other_side(TAKES_ALL);
    let told = switch.data.recv(&mut buffer).unwrap();
    let negotiation = switch.negotiation.as_mut().unwrap();
    let event = negotiation.receive(&buffer[..told]);
    assert_eq!(event, Received::Message(Some(Event::Offloads)));
    assert!(switch.data.recv(&mut buffer).is_err(), "announced once");
    assert_eq!(link.state(), State::UP, "it takes none so far");

    let whole = vec![1; MAX_FRAME];
    negotiation.set_host_offloads(Offloads::ALL);
    switch.send_messages();
    for datagram in [&wrapped(&whole), &whole[..60].to_vec()] {
        switch.data.send(datagram).unwrap();
    }
    let mut batch = Batch::new();
    link.recv(&mut batch.rx()).unwrap();
    assert_eq!(link.state(), TAKES_ALL);
    let frames = batch.tx(0);
    let got: Vec<_> = frames.frames().map(|f| (f.header(), f.bytes())).collect();
    assert!(got == [(TSO, &whole[..]), (VnetHeader::default(), &whole[..60])]);

    assert!(batch.rx().push(&[1; MAX_LEGACY_FRAME + 1]));
    assert_eq!(link.send(&mut batch.tx(0)).unwrap(), 3);
    assert_eq!(batch.take_dropped(), 1);
    let sent = switch.data.recv(&mut buffer).unwrap();
    assert!(buffer[..sent] == wrapped(&whole));
    assert_eq!(switch.data.recv(&mut buffer).unwrap(), 60);
    assert!(switch.data.recv(&mut buffer).is_err());
}

#[test]
fn super_frames_without_a_frame_are_dropped_and_counted() {
    let (_directory, mut link, switch) = pair_with(Kind::Ours(None), "");
    let shortest = wrapped(&[1; MIN_FRAME]);
    let mut batch = Batch::new();
    for cut in 0..=shortest.len() - SUPER_PREFIX.len() {
        let datagram = &shortest[..shortest.len() - cut];
        switch.data.send(datagram).unwrap();
        switch.data.send(&[1; 60]).unwrap();
        batch.clear();
        link.recv(&mut batch.rx()).unwrap();
        let expected = if cut == 0 { (2, 0) } else { (1, 1) };
        assert_eq!((batch.len(), batch.take_dropped()), expected, "{cut}");
        assert_eq!(batch.tx(0).frames().count(), batch.len(), "{cut}");
    }
}

#[test]
fn a_legacy_switch_is_told_nothing() {
    let (_directory, mut link, switch) = pair("");
    link.other_side(TAKES_ALL);
    switch.data.send(&wrapped(&[1; 60])).unwrap();
    let mut batch = Batch::new();
    link.recv(&mut batch.rx()).unwrap();
    assert_eq!(
        (batch.len(), batch.take_dropped()),
        (0, 1),
        "no super-frames"
    );
    assert_eq!(link.state(), State::UP);
    assert!(switch.data.recv(&mut [0; 100]).is_err());
}

#[test]
fn a_full_queue_leaves_frames_and_says_when_it_has_room() {
    let (_directory, mut link, switch) = pair("");
    let mut batch = Batch::new();
    fill(batch.rx(), 32, 60);
    let mut sent = 0;
    loop {
        let n = link.send(&mut batch.tx(0)).unwrap();
        sent += n;
        assert!(sent < 1_000_000);
        if n < 32 {
            break;
        }
    }
    let writable = |link: &Vde| {
        let mut fds = [PollFd::new(link.send_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    };
    assert!(!writable(&link));
    let mut buffer = [0; 100];
    for _ in 0..sent {
        switch.data.recv(&mut buffer).unwrap();
    }
    assert!(writable(&link));
    assert_eq!(link.send(&mut batch.tx(31)).unwrap(), 1);
}

#[test]
fn frames_too_long_for_a_switch_are_dropped_and_counted() {
    let (_directory, mut link, switch) = pair("");
    let mut batch = Batch::new();
    fill(batch.rx(), 1, MAX_LEGACY_FRAME + 1);
    fill(batch.rx(), 1, 60);
    assert_eq!(link.send(&mut batch.tx(0)).unwrap(), 2);
    assert_eq!(batch.take_dropped(), 1);
    assert_eq!(switch.data.recv(&mut [0; 100]).unwrap(), 60);
}

#[test]
fn the_end_of_the_control_stream_closes_the_link() {
    let hang_ups: [fn(&mut FakePort); 2] = [
        |port| port.control.shutdown(std::net::Shutdown::Both).unwrap(),
        |port| port.control.write_all(b"x").unwrap(),
    ];
    for hang_up in hang_ups {
        let (_directory, mut link, mut switch) = pair("");
        let mut batch = Batch::new();
        link.recv(&mut batch.rx()).unwrap();
        assert!(link.state().carrier);
        hang_up(&mut switch);
        assert!(is_readable(link.fd()));
        let error = link.recv(&mut batch.rx()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Closed);
        assert!(!link.state().carrier);
    }
}

#[test]
fn sending_to_a_dead_switch_closes_the_link() {
    let (_directory, mut link, switch) = pair("");
    drop(switch);
    let mut batch = Batch::new();
    fill(batch.rx(), 1, 60);
    let error = link.send(&mut batch.tx(0)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Closed, "{error}");
    assert!(!link.state().carrier);
}

#[test]
fn a_group_of_ports_has_a_socket_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let group = serve(directory.path(), "staff");
    let link = open_in(&directory, "[port=staff]").unwrap();
    assert_eq!(group.join().unwrap().request.port, 0);
    drop(link);
    fs::remove_file(directory.path().join("fd1")).unwrap();
    let ctl = serve(directory.path(), "ctl");
    open_in(&directory, "[port=guests]").unwrap();
    assert_eq!(ctl.join().unwrap().request.port, 0);
}

#[test]
fn no_switch_there() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).display().to_string();

    let (kind, text) = fail(&path("missing"));
    assert_eq!(kind, ErrorKind::NotFound);
    let advice = format!("vde_plug null:// switch://{}", path("missing"));
    assert!(
        text.contains("no switch directory") && text.contains(&advice),
        "{text}"
    );

    fs::write(path("file"), "").unwrap();
    let (kind, text) = fail(&path("file"));
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(text.contains("not a directory"), "{text}");

    fs::create_dir(path("empty")).unwrap();
    assert!(fail(&path("empty")).1.contains("no listening socket ctl"));
    fs::write(path("empty/ctl"), "").unwrap();
    assert!(fail(&path("empty")).1.contains("no listening socket ctl"));

    fs::create_dir(path("dgram")).unwrap();
    let _dgram = UnixDatagram::bind(path("dgram/ctl")).unwrap();
    assert!(fail(&path("dgram")).1.contains("no listening socket ctl"));

    fs::create_dir(path("stale")).unwrap();
    drop(UnixListener::bind(path("stale/ctl")).unwrap());
    assert!(fail(&path("stale")).1.contains("not running"));

    let (kind, text) = fail(&path(&"x".repeat(107)));
    assert_eq!(kind, ErrorKind::Usage);
    assert!(text.contains("limit is 107"), "{text}");
}

#[test]
fn a_switch_that_refuses_or_talks_nonsense() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("ctl")).unwrap();
    let answer = |bytes: &'static [u8]| {
        let listener = listener.try_clone().unwrap();
        thread::spawn(move || {
            let (mut control, _) = listener.accept().unwrap();
            let _ = control.read(&mut [0; MAX_REQUEST_LEN]).unwrap();
            control.write_all(bytes).unwrap();
        })
    };
    let vnl = directory.path().display().to_string();
    for (bytes, keys, expected, words) in [
        (&b""[..], "", ErrorKind::Permission, "refused a port"),
        (b"", "[5]", ErrorKind::Busy, "refused port 5"),
        (b"\x01\0/half", "", ErrorKind::Permission, "refused a port"),
        (&[0x41; 110], "", ErrorKind::Protocol, "family"),
    ] {
        let switch = answer(bytes);
        let (kind, text) = fail(&format!("{vnl}{keys}"));
        assert_eq!(kind, expected, "{text}");
        assert!(text.contains(words), "{text}");
        switch.join().unwrap();
    }
    let left = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 1, "only ctl is left");
}

#[test]
fn a_silent_switch_is_not_waited_for_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(directory.path().join("ctl")).unwrap();
    let start = Instant::now();
    let (_, text) = fail(&directory.path().display().to_string());
    assert!(text.contains("does not answer"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(4));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}
