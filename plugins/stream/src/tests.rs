//! Both ends as the host calls them, and peers that are plain sockets.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{Backlog, listen};
use nix::unistd::geteuid;
use vdens_plugin_kit::bound_socket::Access;
use vdens_plugin_kit::user::AllowedUser;
use vdens_plugin_kit::{Batch, ErrorKind, Host, Link, OpenOptions, OpenRequest, Result};

use crate::open;
use crate::target::{Address, Side, Target};

const LIMIT: Duration = Duration::from_secs(10);

fn open_vnl(vnl: &str) -> Result<Box<dyn Link>> {
    open(&OpenRequest {
        vnl,
        options: OpenOptions::default(),
        host: Host::without_services(),
    })
}

#[track_caller]
fn refused(vnl: &str) -> String {
    let error = open_vnl(vnl).err();
    error
        .unwrap_or_else(|| panic!("{vnl} is opened"))
        .to_string()
}

/// Calls `recv` when the link is readable, until `is_enough` holds of the frames received.
#[track_caller]
fn receive(link: &mut dyn Link, is_enough: impl Fn(&dyn Link, &[Vec<u8>]) -> bool) -> Vec<Vec<u8>> {
    let (mut frames, mut batch) = (Vec::new(), Batch::new());
    let end = Instant::now() + LIMIT;
    while !is_enough(link, &frames) {
        assert!(Instant::now() < end, "{} frames", frames.len());
        let mut fds = [PollFd::new(link.fd(), PollFlags::POLLIN)];
        if poll(&mut fds, 10_u8).unwrap() > 0 {
            batch.clear();
            link.recv(&mut batch.rx()).unwrap();
            frames.extend(batch.tx(0).frames().map(|frame| frame.bytes().to_vec()));
        }
    }
    frames
}

fn carrier(up: bool) -> impl Fn(&dyn Link, &[Vec<u8>]) -> bool {
    move |link, _| link.state().carrier == up
}

/// Sends frames of these lengths; how many were taken, and how many of these dropped.
fn send(link: &mut dyn Link, lengths: &[usize]) -> (usize, u64) {
    let mut batch = Batch::new();
    for length in lengths {
        assert!(batch.rx().push(&vec![*length as u8; *length]));
    }
    let taken = link.send(&mut batch.tx(0)).unwrap();
    (taken, batch.take_dropped())
}

fn lengths(frames: &[Vec<u8>]) -> Vec<usize> {
    frames.iter().map(Vec::len).collect()
}

/// A directory, the VNL of a socket in it, and its path.
fn place() -> (tempfile::TempDir, String, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    (dir, format!("stream://{}", path.display()), path)
}

/// A port that no process has.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn vnls() {
    let parse = |argument: &str| Target::parse(argument, &OpenOptions::default());
    let tcp = |host: &str, port| Address::Tcp {
        host: host.to_owned(),
        port,
    };
    let path = |text: &str| Address::Path(std::path::absolute(text).unwrap());
    let listen = Side::Listen(Access {
        mode: 0o700,
        group: None,
    });
    let connect = Side::Connect(AllowedUser::First);
    for (argument, address, side) in [
        ("/tmp/s", path("/tmp/s"), listen),
        ("s[listen]", path("s"), listen),
        ("s[connect]", path("s"), connect),
        (
            "s[connect/user=any]",
            path("s"),
            Side::Connect(AllowedUser::Any),
        ),
        ("./s:12[connect]", path("./s:12"), connect),
        ("s:x", path("s:x"), listen),
        (":4000", tcp("127.0.0.1", 4000), listen),
        ("h.org:65535/connect", tcp("h.org", 65_535), connect),
        ("[::1]:1/listen", tcp("[::1]", 1), listen),
        ("[fe80::1%25eth0]:2", tcp("[fe80::1%eth0]", 2), listen),
    ] {
        assert_eq!(
            parse(argument).unwrap(),
            Target { address, side },
            "{argument}"
        );
    }
    for (argument, words) in [
        ("", "no path"),
        ("s[connect/listen]", "both listen and connect"),
        ("s[connect/mode=0777]", "'mode' is for a link that listens"),
        ("s[user=any]", "'user' is for a link that connects"),
        (
            "s[port=1]",
            "valid keys: listen, connect, mode, group, user",
        ),
        ("h:1/mode=0777", "valid keys: listen, connect"),
        ("h:0", "'0' is no port"),
        ("h:65536", "'65536' is no port"),
        ("h:1[connect]", "stream://HOST:PORT/connect"),
        ("s{ptp://x}", "unexpected nested VNL"),
    ] {
        let error = parse(argument).unwrap_err().to_string();
        assert!(error.contains(words), "{argument}: {error}");
    }
    let options = OpenOptions {
        mode: Some(0o770),
        ..OpenOptions::default()
    };
    let open_to_the_group = Side::Listen(Access {
        mode: 0o770,
        group: None,
    });
    assert_eq!(
        Target::parse("s", &options).unwrap().side,
        open_to_the_group
    );
}

#[test]
fn two_ends_exchange_frames_of_every_length_through_both_kinds_of_sockets() {
    let (_dir, unix, _) = place();
    let (v4, v6) = (free_port(), free_port());
    for (near, far) in [
        (unix.clone(), format!("{unix}[connect]")),
        (
            format!("stream://:{v4}"),
            format!("stream://localhost:{v4}/connect"),
        ),
        (
            format!("stream://[::1]:{v6}"),
            format!("stream://[::1]:{v6}/connect"),
        ),
    ] {
        let mut server = open_vnl(&near).unwrap();
        assert!(!server.state().carrier);
        assert_eq!(send(&mut *server, &[60]), (1, 1), "there is no peer");
        let mut client = open_vnl(&far).unwrap();
        receive(&mut *server, carrier(true));
        let sizes = [14, 60, 1514, 9234, 65_558];
        assert_eq!(send(&mut *client, &sizes), (5, 0));
        let all = |_: &dyn Link, frames: &[Vec<u8>]| frames.len() == 5;
        assert_eq!(lengths(&receive(&mut *server, all)), sizes);
        assert_eq!(send(&mut *server, &sizes), (5, 0));
        assert_eq!(lengths(&receive(&mut *client, all)), sizes);
        drop(client);
        receive(&mut *server, carrier(false));
        assert_eq!(server.status().reason, "", "a peer may leave");
        let _again = open_vnl(&far).unwrap();
        receive(&mut *server, carrier(true));
    }
}

#[test]
fn a_full_socket_makes_the_sender_wait_and_loses_nothing() {
    let (_dir, vnl, path) = place();
    let mut server = open_vnl(&vnl).unwrap();
    let mut peer = UnixStream::connect(path).unwrap();
    receive(&mut *server, carrier(true));
    let mut sent = 0;
    loop {
        let (taken, dropped) = send(&mut *server, &[1514; 32]);
        assert_eq!(dropped, 0);
        sent += taken;
        if taken < 32 {
            break;
        }
    }
    let mut fds = [PollFd::new(server.send_fd(), PollFlags::POLLOUT)];
    assert_eq!(poll(&mut fds, 0_u8).unwrap(), 0, "it is full");
    peer.set_nonblocking(true).unwrap();
    let (mut bytes, mut received) = (vec![0; 100_000], 0);
    let end = Instant::now() + LIMIT;
    while received < sent * 1518 {
        assert!(Instant::now() < end, "{received} of {sent} frames' bytes");
        received += peer.read(&mut bytes).unwrap_or(0);
        let mut fds = [PollFd::new(server.fd(), PollFlags::POLLIN)];
        if poll(&mut fds, 0_u8).unwrap() > 0 {
            server.recv(&mut Batch::new().rx()).unwrap();
        }
    }
    assert_eq!(received, sent * 1518);
}

#[test]
fn frames_may_come_in_any_pieces() {
    let (_dir, vnl, path) = place();
    let mut server = open_vnl(&vnl).unwrap();
    let mut peer = UnixStream::connect(path).unwrap();
    let record = [&[0, 0, 0, 20][..], &[7; 20]].concat();
    for byte in &record {
        peer.write_all(&[*byte]).unwrap();
        let mut batch = Batch::new();
        server.recv(&mut batch.rx()).unwrap();
        server.recv(&mut batch.rx()).unwrap();
    }
    // Too short to be frames: dropped and counted.
    peer.write_all(&[0, 0, 0, 1, 9, 0, 0, 0, 13]).unwrap();
    peer.write_all(&[9; 13]).unwrap();
    peer.write_all(&record.repeat(100)).unwrap();
    let frames = receive(&mut *server, |_, frames| frames.len() == 100);
    assert!(frames.iter().all(|frame| *frame == [7; 20]));
}

#[test]
fn a_wrong_length_closes_the_connection_and_the_next_peer_is_welcome() {
    let (_dir, vnl, path) = place();
    let mut server = open_vnl(&vnl).unwrap();
    for (bytes, words) in [
        (&[0, 0, 0, 0][..], "frame of 0 bytes"),
        (&[0, 1, 0, 23], "65559 bytes is too long"),
        (&[255; 4], "4294967295 bytes is too long"),
        (b"GET / HTTP/1.1", "too long"),
    ] {
        let mut peer = UnixStream::connect(&path).unwrap();
        receive(&mut *server, carrier(true));
        assert_eq!(server.status().reason, "");
        peer.write_all(&[0, 0, 0, 14]).unwrap();
        peer.write_all(&[7; 14]).unwrap();
        peer.write_all(bytes).unwrap();
        let frames = receive(&mut *server, carrier(false));
        assert_eq!(frames, [[7; 14]]);
        assert!(
            server.status().reason.contains(words),
            "{:?}",
            server.status()
        );
        assert_eq!(peer.read(&mut [0]).unwrap_or(0), 0);
    }
    let listener = UnixListener::bind(path.with_file_name("t")).unwrap();
    let mut client = open_vnl(&format!("{}[connect]", vnl.replace("/s", "/t"))).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(&[255; 4]).unwrap();
    let error = client.recv(&mut Batch::new().rx()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Protocol);
    assert!(
        error
            .message
            .contains("/t: QEMU stream frame of 4294967295"),
        "{error}"
    );
}

#[test]
fn a_second_peer_is_refused_and_the_first_one_stays() {
    let (_dir, vnl, path) = place();
    let mut server = open_vnl(&vnl).unwrap();
    let mut first = UnixStream::connect(&path).unwrap();
    receive(&mut *server, carrier(true));
    for _ in 0..3 {
        let mut second = UnixStream::connect(&path).unwrap();
        second.set_read_timeout(Some(LIMIT)).unwrap();
        server.recv(&mut Batch::new().rx()).unwrap();
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
    }
    let peer = server.status().peer.unwrap();
    assert_eq!(peer.uid, Some(geteuid().as_raw()));
    assert_eq!(peer.pid, Some(std::process::id()));
    send(&mut *server, &[14]);
    first.read_exact(&mut [0; 18]).unwrap();
}

#[test]
fn paths_are_reclaimed_and_given_back() {
    let (_dir, vnl, path) = place();
    drop(UnixListener::bind(&path).unwrap());
    let server = open_vnl(&vnl).unwrap();
    assert!(refused(&vnl).contains("another process does; use another path"));
    drop(server);
    assert!(!path.exists());
    let _datagrams = UnixDatagram::bind(&path).unwrap();
    assert!(refused(&vnl).contains("another process does"));
    let error = refused(&format!("{vnl}[connect]"));
    assert!(error.contains("no stream socket"), "{error}");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(refused(&vnl).contains("is not a socket"));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

/// What another process has put at the path is not served, so the host opens the VNL again.
#[test]
fn a_server_whose_path_is_taken_ends_with_its_peer() {
    let (_dir, vnl, path) = place();
    let mut server = open_vnl(&vnl).unwrap();
    let peer = UnixStream::connect(&path).unwrap();
    receive(&mut *server, carrier(true));
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(peer);
    let error = server.recv(&mut Batch::new().rx()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Closed);
    drop(server);
    assert!(path.exists());
}

#[test]
fn errors_say_what_to_do() {
    let (_dir, vnl, path) = place();
    let connect = format!("{vnl}[connect]");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let (taken, port) = (other.local_addr().unwrap().port(), free_port());
    for (vnl, words) in [
        (connect.clone(), "start the far end first"),
        (
            format!("stream://:{port}/connect"),
            "start the far end first",
        ),
        (
            format!("stream://:{taken}"),
            "another program has that port",
        ),
        ("stream://192.0.2.1:4000".to_owned(), "/connect"),
        ("stream://::1:4000".to_owned(), "in brackets"),
        (
            "stream://no.such.host.invalid:1/connect".to_owned(),
            "no.such.host.invalid",
        ),
        (format!("stream://{}/no/s", path.display()), "/s/no"),
    ] {
        let error = refused(&vnl);
        assert!(error.contains(words), "{vnl}: {error}");
    }
    // A listener that accepts nobody.
    let (listener, mut waiting) = (UnixListener::bind(&path).unwrap(), Vec::new());
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let error = loop {
        match open_vnl(&connect) {
            Ok(link) => waiting.push(link),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(
        error.to_string().contains("does not accept connections"),
        "{error}"
    );
}

#[test]
fn only_a_user_who_is_asked_for_is_joined() {
    let (_dir, vnl, path) = place();
    let _listener = UnixListener::bind(&path).unwrap();
    let own = geteuid().as_raw();
    let error = refused(&format!("{vnl}[connect/user={}]", own + 1));
    assert!(error.contains("cannot join the far end at"), "{error}");
    open_vnl(&format!("{vnl}[connect/user={own}]")).unwrap();
}
