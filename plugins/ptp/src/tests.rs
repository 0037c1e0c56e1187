//! Both ends in one process, and hostile strangers in place of one.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, Backlog, MsgFlags, SockType};
use tempfile::TempDir;
use vdens_plugin_kit::{
    BATCH_FRAMES, Batch, Error, ErrorKind, Host, Link, MAX_LEGACY_FRAME, OpenOptions, Result,
};

use super::{Place, Ptp, sockets};

/// How soon carrier must follow the truth.
const SOON: Duration = Duration::from_millis(200);
/// How soon two ends must have found each other. It takes two ticks if one was killed and is back
/// before the other has noticed.
const FOUND: Duration = Duration::from_millis(300);

const BOTH: [&str; 2] = ["", "[seqpacket]"];

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("p")
    }

    fn plus(&self) -> PathBuf {
        self.0.path().join("p+")
    }

    fn place(&self, keys: &str) -> Place {
        let argument = format!("{}{keys}", self.path().display());
        Place::parse(&argument, &OpenOptions::default()).unwrap()
    }

    fn try_open(&self, keys: &str) -> Result<End> {
        End::open(self.place(keys))
    }

    fn open(&self, keys: &str) -> End {
        self.try_open(keys).unwrap()
    }

    /// Opens another end while `ends` live.
    fn try_open_beside(&self, keys: &str, ends: &mut [&mut End]) -> Result<End> {
        thread::scope(|scope| {
            let opening = scope.spawn(|| self.try_open(keys));
            while !opening.is_finished() {
                live(ends, Duration::from_millis(2));
            }
            opening.join().unwrap()
        })
    }

    fn open_beside(&self, keys: &str, ends: &mut [&mut End]) -> End {
        self.try_open_beside(keys, ends).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }
}

struct End {
    link: Ptp,
    batch: Batch,
    dropped: u64,
}

impl End {
    fn open(place: Place) -> Result<Self> {
        Ok(Self {
            link: Ptp::open(place, Host::without_services())?,
            batch: Batch::new(),
            dropped: 0,
        })
    }

    fn carrier(&self) -> bool {
        self.link.state().carrier
    }

    fn readable(&self, wait: Duration) -> bool {
        let timeout = PollTimeout::try_from(wait).unwrap();
        let mut fds = [PollFd::new(self.link.fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).unwrap() > 0
    }

    fn writable(&self) -> bool {
        let mut fds = [PollFd::new(self.link.send_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }

    /// Receives once.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        self.batch.clear();
        self.link.recv(&mut self.batch.rx()).unwrap();
        self.dropped += self.batch.take_dropped();
        let frames = self.batch.tx(0);
        frames.frames().map(|f| f.bytes().to_vec()).collect()
    }

    fn receive_for(&mut self, time: Duration) -> Vec<Vec<u8>> {
        let end = Instant::now() + time;
        let mut frames = Vec::new();
        while Instant::now() < end {
            if self.readable(Duration::from_millis(5)) {
                frames.extend(self.receive());
            }
        }
        frames
    }

    /// Offers frames once; returns how many were taken and how many of them dropped.
    fn send(&mut self, frames: &[impl AsRef<[u8]>]) -> (usize, u64) {
        let mut batch = Batch::new();
        for frame in frames {
            assert!(batch.rx().push(frame.as_ref()));
        }
        let taken = self.link.send(&mut batch.tx(0)).unwrap();
        (taken, batch.take_dropped())
    }
}

/// Lets the ends do their work for a while.
fn live(ends: &mut [&mut End], time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        for end in &mut *ends {
            if end.readable(Duration::from_millis(1)) {
                end.receive();
            }
        }
    }
}

fn wait_for_carrier(ends: &mut [&mut End], wanted: bool) {
    let start = Instant::now();
    let limit = if wanted { FOUND } else { SOON };
    while ends.iter().any(|end| end.carrier() != wanted) {
        assert!(start.elapsed() < limit, "no carrier {wanted}");
        live(ends, Duration::from_millis(1));
    }
}

fn exchange(a: &mut End, b: &mut End) {
    for len in [14, 60, 1514, MAX_LEGACY_FRAME] {
        let (there, back) = (vec![1; len], vec![2; len]);
        assert_eq!(a.send(&[&there, &there]), (2, 0));
        assert_eq!(b.receive(), [there.clone(), there]);
        assert_eq!(b.send(&[&back]), (1, 0));
        assert_eq!(a.receive(), [back]);
    }
}

fn connected(a: &mut End, b: &mut End) {
    wait_for_carrier(&mut [a, b], true);
    exchange(a, b);
}

/// Dies as a killed process does: the paths stay.
fn kill(end: End, dir: &Dir) {
    let aside = dir.0.path().join("aside");
    fs::create_dir(&aside).unwrap();
    for name in ["p", "p+"] {
        let _ = fs::rename(dir.0.path().join(name), aside.join(name));
    }
    drop(end);
    for name in ["p", "p+"] {
        let _ = fs::rename(aside.join(name), dir.0.path().join(name));
    }
    fs::remove_dir(&aside).unwrap();
}

fn fails(result: Result<End>, kind: ErrorKind, words: &str) -> Error {
    let error = result.err().unwrap();
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(!error.hint.is_empty(), "{error}");
    error
}

fn seqpacket() -> OwnedFd {
    let fd = sockets::new(SockType::SeqPacket).unwrap();
    let flags = nix::fcntl::OFlag::empty();
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    fd
}

fn send_packet(fd: &OwnedFd, bytes: &[u8]) {
    socket::send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
}

#[test]
fn frames_go_both_ways_and_paths_go_away() {
    for first in BOTH {
        for second in BOTH {
            let dir = Dir::new();
            let mut a = dir.open(first);
            assert!(!a.carrier());
            let mut b = dir.open_beside(second, &mut [&mut a]);
            assert!(b.carrier(), "a second comer has carrier at once");
            connected(&mut a, &mut b);
            let expected: &[&str] = match first {
                "" => &["p", "p+"],
                _ => &["p"],
            };
            assert_eq!(dir.names(), expected);
            drop(a);
            drop(b);
            assert_eq!(dir.names(), [""; 0]);
        }
    }
}

#[test]
fn without_a_peer_frames_are_dropped_and_counted() {
    for keys in BOTH {
        let dir = Dir::new();
        let mut a = dir.open(keys);
        assert_eq!(a.send(&[[0; 60]; 5]), (5, 5));
        assert!(a.writable());
    }
}

/// Leaving in either order, politely or not, then coming back.
#[test]
fn whoever_leaves_can_come_back() {
    for keys in BOTH {
        for first_leaves in [true, false] {
            for killed in [true, false] {
                let dir = Dir::new();
                let mut a = dir.open(keys);
                let mut b = dir.open_beside("", &mut [&mut a]);
                connected(&mut a, &mut b);
                for _ in 0..3 {
                    let (leaver, mut stayer) = if first_leaves { (a, b) } else { (b, a) };
                    match killed {
                        true => kill(leaver, &dir),
                        false => drop(leaver),
                    }
                    wait_for_carrier(&mut [&mut stayer], false);
                    assert_eq!(stayer.send(&[[0; 60]; 3]), (3, 3));
                    live(&mut [&mut stayer], Duration::from_millis(120));
                    let mut back = dir.open_beside(keys, &mut [&mut stayer]);
                    connected(&mut stayer, &mut back);
                    (a, b) = if first_leaves {
                        (back, stayer)
                    } else {
                        (stayer, back)
                    };
                }
                drop((a, b));
                assert_eq!(dir.names(), [""; 0]);
            }
        }
    }
}

/// The returning end finds the other still connected to its predecessor.
#[test]
fn an_end_can_come_back_before_it_was_missed() {
    for keys in BOTH {
        let dir = Dir::new();
        let mut a = dir.open(keys);
        let mut b = dir.open_beside("", &mut [&mut a]);
        connected(&mut a, &mut b);
        kill(a, &dir);
        let mut a = dir.open_beside(keys, &mut [&mut b]);
        connected(&mut a, &mut b);
        kill(b, &dir);
        let mut b = dir.open_beside(keys, &mut [&mut a]);
        connected(&mut a, &mut b);
    }
}

#[test]
fn both_can_be_killed_and_come_back() {
    for keys in BOTH {
        let dir = Dir::new();
        let mut a = dir.open(keys);
        let b = dir.open_beside("", &mut [&mut a]);
        kill(a, &dir);
        kill(b, &dir);
        let mut b = dir.open(keys);
        let mut a = dir.open_beside(keys, &mut [&mut b]);
        connected(&mut a, &mut b);
    }
}

#[test]
fn an_end_whose_path_is_taken_away_takes_it_again() {
    for keys in BOTH {
        let dir = Dir::new();
        let mut a = dir.open(keys);
        fs::remove_file(dir.path()).unwrap();
        live(&mut [&mut a], SOON);
        let mut b = dir.open_beside("", &mut [&mut a]);
        connected(&mut a, &mut b);
    }
    let dir = Dir::new();
    let (mut a, mut b) = (dir.open(""), dir.open(""));
    fs::remove_file(dir.path()).unwrap();
    fs::remove_file(dir.plus()).unwrap();
    live(&mut [&mut a, &mut b], SOON);
    connected(&mut a, &mut b);
}

#[test]
fn a_second_comer_of_one_generation_follows_the_other() {
    // Nobody is at PATH, but the end at PATH+ speaks dgram.
    let dir = Dir::new();
    let a = dir.open("");
    let mut b = dir.open("");
    drop(a);
    let mut a = dir.open_beside("[seqpacket]", &mut [&mut b]);
    connected(&mut a, &mut b);
    assert_eq!(dir.names(), ["p", "p+"]);

    // A legacy listener would not know that.
    drop(a);
    let listener = seqpacket();
    let address = socket::UnixAddr::new(&dir.path()).unwrap();
    socket::bind(listener.as_raw_fd(), &address).unwrap();
    socket::listen(&listener, Backlog::new(1).unwrap()).unwrap();
    live(&mut [&mut b], SOON);
    let peer = socket::accept(listener.as_raw_fd()).unwrap();
    // SAFETY: the descriptor was just accepted and has no other owner.
    let peer = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(peer) };
    assert!(!b.carrier(), "not greeted yet");
    send_packet(&peer, &[0]);
    wait_for_carrier(&mut [&mut b], true);
    assert_eq!(dir.names(), ["p"]);
    assert_eq!(b.send(&[[7; 60]]), (1, 0));
}

#[test]
fn a_third_comer_is_turned_away_and_changes_nothing() {
    for keys in BOTH {
        let dir = Dir::new();
        let mut a = dir.open(keys);
        let mut b = dir.open_beside("", &mut [&mut a]);
        for third in BOTH {
            let result = dir.try_open_beside(third, &mut [&mut a, &mut b]);
            fails(result, ErrorKind::Busy, "has two ends already");
            connected(&mut a, &mut b);
        }
    }
}

#[test]
fn a_silent_listener_is_an_error() {
    let dir = Dir::new();
    let _a = dir.open("[seqpacket]");
    let start = Instant::now();
    fails(dir.try_open(""), ErrorKind::Busy, "does not answer");
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn stale_sockets_are_reused() {
    for keys in BOTH {
        let dir = Dir::new();
        drop(UnixListener::bind(dir.path()).unwrap());
        drop(UnixDatagram::bind(dir.plus()).unwrap());
        let mut a = dir.open(keys);
        let mut b = dir.open_beside("", &mut [&mut a]);
        connected(&mut a, &mut b);
    }
}

#[test]
fn what_is_no_ptp_socket_is_left_alone() {
    let dir = Dir::new();
    let _ = fs::write(dir.path(), "precious");
    for keys in BOTH {
        fails(dir.try_open(keys), ErrorKind::Usage, "is not a socket");
    }
    assert_eq!(fs::read(dir.path()).unwrap(), b"precious");
    fs::remove_file(dir.path()).unwrap();

    fs::create_dir(dir.path()).unwrap();
    fails(dir.try_open(""), ErrorKind::Usage, "is not a socket");
    fs::remove_dir(dir.path()).unwrap();

    symlink("nowhere", dir.path()).unwrap();
    fails(dir.try_open(""), ErrorKind::Usage, "is not a socket");
    fs::remove_file(dir.path()).unwrap();

    let _listener = UnixListener::bind(dir.path()).unwrap();
    fails(dir.try_open(""), ErrorKind::Usage, "is no ptp socket");
    fs::remove_file(dir.path()).unwrap();

    let listener = UnixListener::bind(dir.plus()).unwrap();
    fails(dir.try_open(""), ErrorKind::Usage, "p+ is no ptp socket");
    drop(listener);
    fs::remove_file(dir.plus()).unwrap();

    fs::write(dir.plus(), "precious").unwrap();
    fails(
        dir.try_open(""),
        ErrorKind::Usage,
        "p+ is there and is not a socket",
    );
    assert_eq!(dir.names(), ["p+"]);
}

#[test]
fn errors_name_the_path_and_the_remedy() {
    let dir = Dir::new();
    let open = |argument: &str, options: &OpenOptions| End::open(Place::parse(argument, options)?);
    let defaults = OpenOptions::default();
    let missing = format!("{}/sub/p", dir.0.path().display());
    for keys in BOTH {
        let result = open(&format!("{missing}{keys}"), &defaults);
        let error = fails(result, ErrorKind::NotFound, &missing);
        assert!(error.hint.contains("make the directory"), "{error}");
    }
    // PATH+ is one byte too long.
    let long = format!("/tmp/{}", "x".repeat(102));
    for (argument, words) in [
        (&long[..], "108 bytes"),
        ("/p[prt]", "seqpacket, mode, group"),
        ("/p{null://}", "nested"),
        ("/p[group=no such]", "no such"),
    ] {
        fails(open(argument, &defaults), ErrorKind::Usage, words);
    }
    let options = OpenOptions {
        group: Some("none such".into()),
        ..OpenOptions::default()
    };
    fails(open("/p", &options), ErrorKind::Usage, "none such");
}

#[test]
fn permissions_are_an_error_not_a_theft() {
    if !nix::unistd::geteuid().is_root() {
        // An ordinary user can lock itself out of its own socket.
        let dir = Dir::new();
        let _a = dir.open("[mode=0]");
        fails(
            dir.try_open(""),
            ErrorKind::Permission,
            "p: Permission denied",
        );
        fs::set_permissions(dir.0.path(), fs::Permissions::from_mode(0o555)).unwrap();
        let other = Place::parse(
            &format!("{}/q", dir.0.path().display()),
            &OpenOptions::default(),
        );
        let error = End::open(other.unwrap()).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Permission);
        assert!(error.hint.contains("write permission"), "{error}");
        fs::set_permissions(dir.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
    } else {
        eprintln!("skipped: root may do anything");
    }
}

#[test]
fn mode_and_group_are_applied() {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let gid = nix::unistd::getegid();
    for keys in BOTH {
        let dir = Dir::new();
        let _a = dir.open(keys);
        assert_eq!(mode(&dir.path()), 0o700);
    }
    let dir = Dir::new();
    let options = OpenOptions {
        mode: Some(0o777),
        group: Some(gid.to_string()),
        ..OpenOptions::default()
    };
    let open = |keys: &str| {
        let argument = format!("{}{keys}", dir.path().display());
        End::open(Place::parse(&argument, &options).unwrap()).unwrap()
    };
    let _a = open("[mode=0770]");
    let _b = open("");
    assert_eq!(mode(&dir.path()), 0o770);
    assert_eq!(mode(&dir.plus()), 0o777);
    assert_eq!(fs::metadata(dir.plus()).unwrap().gid(), gid.as_raw());
}

#[test]
fn hostile_datagrams_are_dropped_and_counted() {
    let dir = Dir::new();
    let mut a = dir.open("");
    let stranger = UnixDatagram::unbound().unwrap();
    for len in [0, 13, 9235, 20_000, 14] {
        stranger.send_to(&vec![1; len], dir.path()).unwrap();
    }
    let frames = a.receive_for(SOON);
    assert_eq!(frames, [[1; 14]]);
    assert_eq!(a.dropped, 4);
    assert!(!a.carrier());
}

#[test]
fn hostile_packets_are_dropped_and_counted() {
    let dir = Dir::new();
    let mut a = dir.open("[seqpacket]");
    for hang_up_first in [false, true] {
        let stranger = seqpacket();
        sockets::connect(&stranger, &dir.path()).unwrap();
        wait_for_carrier(&mut [&mut a], true);
        a.dropped = 0;
        for len in [13, 9235, 20_000, 14] {
            send_packet(&stranger, &vec![1; len]);
        }
        if hang_up_first {
            drop(stranger);
            assert_eq!(a.receive_for(SOON), [[1; 14]]);
            assert_eq!(a.dropped, 3);
        } else {
            send_packet(&stranger, &[]);
            assert_eq!(a.receive_for(SOON), [[1; 14]]);
            assert_eq!(a.dropped, 4);
            assert!(a.carrier());
            drop(stranger);
        }
        live(&mut [&mut a], SOON);
    }
    assert!(!a.carrier());
}

#[test]
fn what_was_sent_before_leaving_arrives() {
    for keys in BOTH {
        let dir = Dir::new();
        let mut a = dir.open(keys);
        let mut b = dir.open_beside("", &mut [&mut a]);
        connected(&mut a, &mut b);
        // What the leaver has not read makes its end a reset.
        assert_eq!(a.send(&[[0; 60]]), (1, 0));
        let frames = &[[7; 60]; BATCH_FRAMES];
        for _ in 0..2 {
            assert_eq!(b.send(frames), (BATCH_FRAMES, 0));
        }
        drop(b);
        thread::sleep(SOON);
        assert_eq!(a.receive_for(SOON).len(), 2 * BATCH_FRAMES);
        assert!(!a.carrier());
    }
}

#[test]
fn a_full_queue_leaves_frames_and_drains() {
    for keys in BOTH {
        let dir = Dir::new();
        let mut a = dir.open(keys);
        let mut b = dir.open_beside("", &mut [&mut a]);
        connected(&mut a, &mut b);
        let frames = &[[7; 1514]; BATCH_FRAMES];
        let mut sent = 0;
        loop {
            let (taken, dropped) = a.send(frames);
            assert_eq!(dropped, 0);
            sent += taken;
            if taken < frames.len() {
                break;
            }
        }
        assert!(sent > BATCH_FRAMES, "max_dgram_qlen is not the limit");
        assert!(!a.writable());
        assert_eq!(b.receive_for(SOON).len(), sent);
        assert!(a.writable());
    }
}

/// A peer that is not connected to this end, as a legacy first comer is not before it sends.
#[test]
fn a_full_queue_of_an_unconnected_peer_is_seen_by_poll() {
    let dir = Dir::new();
    let peer = UnixDatagram::bind(dir.path()).unwrap();
    peer.set_nonblocking(true).unwrap();
    let mut a = dir.open("");
    assert!(a.carrier());
    let (taken, dropped) = a.send(&[[7; 60]; BATCH_FRAMES]);
    if taken < BATCH_FRAMES {
        assert_eq!(dropped, 0);
        assert!(!a.writable());
        let mut buffer = [0; 100];
        while peer.recv(&mut buffer).is_ok() {}
        assert!(a.writable());
    } else {
        eprintln!("skipped: net.unix.max_dgram_qlen is raised");
    }
}

#[test]
fn an_idle_link_sleeps() {
    for keys in BOTH {
        let dir = Dir::new();
        let mut a = dir.open(keys);
        let count_wakes = |ends: &mut [&mut End]| {
            let end = Instant::now() + Duration::from_secs(1);
            let mut wakes = 0;
            while Instant::now() < end {
                let fds = ends
                    .iter()
                    .map(|end| PollFd::new(end.link.fd(), PollFlags::POLLIN));
                if poll(&mut fds.collect::<Vec<_>>(), 100_u8).unwrap() > 0 {
                    wakes += 1;
                    for end in &mut *ends {
                        end.receive();
                    }
                }
            }
            wakes
        };
        assert!(count_wakes(&mut [&mut a]) <= 10);
        let mut b = dir.open_beside("", &mut [&mut a]);
        connected(&mut a, &mut b);
        live(&mut [&mut a, &mut b], FOUND);
        let wakes = count_wakes(&mut [&mut a, &mut b]);
        assert!(wakes <= 6, "{wakes}: events tell what ticks would find");
        drop(b);
        assert!(count_wakes(&mut [&mut a]) <= 23);
    }
}

/// The answer to a newcomer's first frame must not be lost for want of a tick.
#[test]
fn a_frame_says_that_the_peer_is_there() {
    let dir = Dir::new();
    let mut a = dir.open("");
    let mut b = dir.open("");
    assert_eq!(b.send(&[[1; 60]]), (1, 0));
    assert_eq!(a.receive(), [[1; 60]]);
    // The proof that it is one of ours takes no tick either.
    b.receive();
    a.receive();
    assert!(a.carrier());
    assert_eq!(a.send(&[[2; 60]]), (1, 0));
}

/// A legacy successor cannot start while its predecessor is still connected to.
#[test]
fn a_polite_departure_is_noticed_at_once() {
    let dir = Dir::new();
    let mut a = dir.open("");
    let b = dir.open("");
    wait_for_carrier(&mut [&mut a], true);
    drop(b);
    assert!(a.readable(Duration::ZERO));
    a.receive();
    assert!(!a.carrier());
    let successor = UnixDatagram::unbound().unwrap();
    successor.connect(dir.path()).unwrap();
}

#[test]
fn ends_that_start_at_the_same_time_find_each_other() {
    for round in 0..24 {
        let dir = Dir::new();
        if round % 2 == 0 {
            drop(UnixListener::bind(dir.path()).unwrap());
        }
        let ready = Barrier::new(2);
        let ends = AtomicUsize::new(0);
        let start = |keys: &'static str| {
            ready.wait();
            let mut end = dir.open(keys);
            let begin = Instant::now();
            let mut up = false;
            while ends.load(Relaxed) < 2 {
                assert!(begin.elapsed() < Duration::from_secs(2), "no carrier");
                live(&mut [&mut end], Duration::from_millis(1));
                if end.carrier() && !up {
                    up = true;
                    ends.fetch_add(1, Relaxed);
                }
            }
            end
        };
        thread::scope(|scope| {
            let a = scope.spawn(|| start(BOTH[round / 2 % 2]));
            let b = scope.spawn(|| start(BOTH[round / 4 % 2]));
            let (mut a, mut b) = (a.join().unwrap(), b.join().unwrap());
            live(&mut [&mut a, &mut b], SOON);
            exchange(&mut a, &mut b);
        });
        assert_eq!(dir.names(), [""; 0]);
    }
}
