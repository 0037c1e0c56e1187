//! The link as the host calls it, and peers that are plain sockets.

use std::fs;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::geteuid;
use vdens_plugin_kit::{BATCH_FRAMES, Batch, Host, Link, OpenOptions, OpenRequest, Result};

use crate::open;
use crate::target::Target;

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

/// A directory with the paths of both ends.
struct Place {
    _dir: tempfile::TempDir,
    own: PathBuf,
    far: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [own, far] = ["own", "far"].map(|name| dir.path().join(name));
        Self {
            _dir: dir,
            own,
            far,
        }
    }

    fn vnl(&self, keys: &str) -> String {
        format!(
            "dgram://{}->{}{keys}",
            self.own.display(),
            self.far.display()
        )
    }

    fn reversed(&self) -> String {
        format!("dgram://{}->{}", self.far.display(), self.own.display())
    }

    /// The VNL without a path for the peer.
    fn waiting(&self) -> String {
        format!("dgram://{}", self.own.display())
    }

    fn peer(&self) -> UnixDatagram {
        let peer = UnixDatagram::bind(&self.far).unwrap();
        peer.set_read_timeout(Some(LIMIT)).unwrap();
        peer
    }
}

/// Calls `recv` when the link is readable, until `is_enough` holds of the lengths received.
#[track_caller]
fn receive(link: &mut dyn Link, is_enough: impl Fn(&dyn Link, &[usize]) -> bool) -> Vec<usize> {
    let (mut lengths, mut batch) = (Vec::new(), Batch::new());
    let end = Instant::now() + LIMIT;
    while !is_enough(link, &lengths) {
        assert!(Instant::now() < end, "{lengths:?}");
        let mut fds = [PollFd::new(link.fd(), PollFlags::POLLIN)];
        if poll(&mut fds, 10_u8).unwrap() > 0 {
            batch.clear();
            link.recv(&mut batch.rx()).unwrap();
            lengths.extend(batch.tx(0).frames().map(|frame| frame.bytes().len()));
        }
    }
    lengths
}

fn carrier(up: bool) -> impl Fn(&dyn Link, &[usize]) -> bool {
    move |link, _| link.state().carrier == up
}

/// Sends frames of these lengths; how many were taken, and how many of these dropped.
fn send(link: &mut dyn Link, lengths: &[usize]) -> (usize, u64) {
    let mut batch = Batch::new();
    for length in lengths {
        assert!(batch.rx().push(&vec![7; *length]));
    }
    let taken = link.send(&mut batch.tx(0)).unwrap();
    (taken, batch.take_dropped())
}

fn receive_one(peer: &UnixDatagram) -> usize {
    peer.recv(&mut [0; 70_000]).unwrap()
}

#[test]
fn vnls() {
    let parse = |argument: &str| Target::parse(argument, &OpenOptions::default());
    let target = parse("/a->/b[mode=0770]").unwrap();
    assert_eq!(target.own, PathBuf::from("/a"));
    assert_eq!(target.far, Some(PathBuf::from("/b")));
    assert_eq!((target.access.mode, target.sends_vfkit), (0o770, false));
    let target = parse("a").unwrap();
    assert_eq!(
        (target.own, target.far),
        (std::path::absolute("a").unwrap(), None)
    );
    assert!(parse("/a->/b[vfkit]").unwrap().sends_vfkit);
    for (argument, words) in [
        ("", "a path is missing"),
        ("/a->", "a path is missing"),
        ("->/b", "a path is missing"),
        ("/a[vfkit]", "OWN->FAR[vfkit]"),
        ("/a[x]", "valid keys: mode, group, user, vfkit"),
        ("/a{ptp://x}", "unexpected nested VNL"),
    ] {
        let error = parse(argument).unwrap_err().to_string();
        assert!(error.contains(words), "{argument}: {error}");
    }
}

#[test]
fn two_ends_in_any_order_that_come_and_go() {
    let place = Place::new();
    let mut a = open_vnl(&place.vnl("")).unwrap();
    assert!(!a.state().carrier);
    assert_eq!(send(&mut *a, &[60]), (1, 1), "there is no peer");
    for _ in 0..2 {
        let mut b = open_vnl(&place.reversed()).unwrap();
        assert!(b.state().carrier, "the peer was there");
        assert_eq!(b.status().peer.unwrap().uid, Some(geteuid().as_raw()));
        receive(&mut *a, carrier(true));
        let sizes = [14, 60, 1514, 9234];
        let all = |_: &dyn Link, lengths: &[usize]| lengths.len() == 4;
        assert_eq!(send(&mut *a, &sizes), (4, 0));
        assert_eq!(receive(&mut *b, all), sizes);
        assert_eq!(send(&mut *b, &sizes), (4, 0));
        assert_eq!(receive(&mut *a, all), sizes);
        assert_eq!(send(&mut *a, &[9235]), (1, 1), "it is too long");
        drop(b);
        receive(&mut *a, carrier(false));
        assert!(!place.far.exists());
    }
}

#[test]
fn a_killed_peer_is_noticed_and_its_successor_joined() {
    let place = Place::new();
    let mut link = open_vnl(&place.vnl("")).unwrap();
    for _ in 0..2 {
        let peer = place.peer();
        receive(&mut *link, carrier(true));
        drop(peer);
        assert_eq!(send(&mut *link, &[60]), (1, 1));
        assert!(!link.state().carrier, "sending tells at once");
        fs::remove_file(&place.far).unwrap();
    }
    // One that takes the path of another that is still there, as QEMU does.
    let first = place.peer();
    receive(&mut *link, carrier(true));
    fs::remove_file(&place.far).unwrap();
    let second = place.peer();
    receive(&mut *link, carrier(false));
    receive(&mut *link, carrier(true));
    send(&mut *link, &[60]);
    assert_eq!(receive_one(&second), 60);
    second.send_to(&[7; 61], &place.own).unwrap();
    assert!(first.send_to(&[7; 62], &place.own).is_err());
    let one = |_: &dyn Link, lengths: &[usize]| !lengths.is_empty();
    assert_eq!(receive(&mut *link, one), [61]);
}

#[test]
fn a_full_queue_makes_the_sender_wait() {
    let place = Place::new();
    let mut link = open_vnl(&place.vnl("")).unwrap();
    let peer = place.peer();
    receive(&mut *link, carrier(true));
    let (taken, dropped) = send(&mut *link, &[60; BATCH_FRAMES]);
    assert_eq!(dropped, 0);
    if taken == BATCH_FRAMES {
        eprintln!("skipped: net.unix.max_dgram_qlen is raised");
        return;
    }
    let is_writable = |link: &dyn Link| {
        let mut fds = [PollFd::new(link.send_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, 0_u8).unwrap() > 0
    };
    assert!(!is_writable(&*link));
    for _ in 0..taken {
        assert_eq!(receive_one(&peer), 60);
    }
    assert!(is_writable(&*link));
}

/// libkrun, vfkit, and gvproxy's other clients.
#[test]
fn a_peer_that_comes_to_the_path_is_answered() {
    let place = Place::new();
    let mut link = open_vnl(&place.waiting()).unwrap();
    assert!(!link.state().carrier);
    let one = |_: &dyn Link, lengths: &[usize]| !lengths.is_empty();
    for first in [&b"VFKT"[..], &[7; 60]] {
        // A sender that cannot be answered is no peer.
        let nameless = UnixDatagram::unbound().unwrap();
        nameless.send_to(&[9; 61], &place.own).unwrap();
        let peer = place.peer();
        peer.connect(&place.own).unwrap();
        peer.send(first).unwrap();
        peer.send(&[7; 62]).unwrap();
        let lengths = receive(&mut *link, |_, lengths| lengths.last() == Some(&62));
        let expected: &[usize] = if first.len() == 4 { &[62] } else { &[60, 62] };
        assert_eq!(lengths, expected);
        assert!(link.state().carrier);
        send(&mut *link, &[63]);
        assert_eq!(receive_one(&peer), 63);
        let second = UnixDatagram::bind(place.far.with_file_name("second")).unwrap();
        assert!(
            second.send_to(&[7; 64], &place.own).is_err(),
            "there is one peer"
        );
        peer.send(&[7; 65]).unwrap();
        assert_eq!(receive(&mut *link, one), [65]);
        drop(peer);
        receive(&mut *link, carrier(false));
        fs::remove_file(&place.far).unwrap();
        fs::remove_file(place.far.with_file_name("second")).unwrap();
    }
}

#[test]
fn a_client_of_vfkits_convention_says_where_it_is() {
    let place = Place::new();
    let peer = place.peer();
    let mut link = open_vnl(&place.vnl("[vfkit]")).unwrap();
    let mut bytes = [0; 100];
    let (length, sender) = peer.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"VFKT");
    assert_eq!(sender.as_pathname(), Some(&*place.own));
    receive(&mut *link, carrier(true));
}

#[test]
fn paths_are_reclaimed_and_given_back_and_errors_say_what_to_do() {
    let place = Place::new();
    drop(UnixDatagram::bind(&place.own).unwrap());
    let link = open_vnl(&place.vnl("")).unwrap();
    let error = refused(&place.vnl(""));
    assert!(error.contains("another process has a socket at"), "{error}");
    drop(link);
    assert!(!place.own.exists());
    fs::write(&place.own, "precious").unwrap();
    assert!(refused(&place.vnl("")).contains("is not a socket"));
    fs::remove_file(&place.own).unwrap();

    let _streams = UnixListener::bind(&place.far).unwrap();
    let link = open_vnl(&place.vnl("")).unwrap();
    let reason = link.status().reason;
    assert!(reason.contains("no datagram socket"), "{reason}");
    drop(link);
    fs::remove_file(&place.far).unwrap();
    let _peer = place.peer();
    let other = geteuid().as_raw() + 1;
    let link = open_vnl(&place.vnl(&format!("[user={other}]"))).unwrap();
    assert!(!link.state().carrier);
    let reason = link.status().reason;
    assert!(reason.contains("cannot join the far end at"), "{reason}");
}

/// A path that was taken away leads nobody here, so the host opens the VNL again.
#[test]
fn a_link_whose_path_is_gone_ends() {
    let place = Place::new();
    let mut link = open_vnl(&place.vnl("")).unwrap();
    fs::remove_file(&place.own).unwrap();
    let end = Instant::now() + LIMIT;
    let error = loop {
        assert!(Instant::now() < end);
        if let Err(error) = link.recv(&mut Batch::new().rx()) {
            break error;
        }
    };
    assert!(error.to_string().contains("was removed"), "{error}");
}
