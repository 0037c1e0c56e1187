//! `vde_switch`: the command line and the console, beside Debian's.
//!
//! Debian's `unixterm` and `unixcmd` talk to both, so what is compared is what scripts see. What is
//! not the same is in [`DIFFERENT`], and in a table of docs/switch.md.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ChildStdin;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use vdens_tests::{
    Cmd, Lab, PATIENCE, Proc, becomes_true, children, name, need, stretched, wait_until,
};

const PROMPT: &str = "vde$ ";

/// Our vde_switch.
fn ours<'lab>(lab: &'lab Lab, args: &[&str]) -> Cmd<'lab> {
    lab.command(lab.bin().join("vde_switch"), args)
}

/// A session of the console through Debian's `unixterm`.
struct Term<'lab> {
    proc: Proc<'lab>,
    input: ChildStdin,
    /// How much of its output was read.
    read: usize,
}

impl<'lab> Term<'lab> {
    fn new(lab: &'lab Lab, socket: &str) -> Self {
        let (proc, input) = lab.debian("unixterm", [lab.path(socket)]).spawn_piped();
        let mut term = Self {
            proc,
            input,
            read: 0,
        };
        let greeting = term.reply();
        assert_eq!(greeting.lines().count(), 3, "{greeting}");
        term
    }

    /// What comes up to the next prompt.
    #[track_caller]
    fn reply(&mut self) -> String {
        let find = || self.proc.stdout()[self.read..].find(PROMPT);
        wait_until("the console prompts", stretched(PATIENCE), || {
            find().is_some()
        });
        let end = self.read + find().unwrap_or_default();
        let reply = self.proc.stdout()[self.read..end].to_owned();
        self.read = end + PROMPT.len();
        reply
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        let sent = self.input.write_all(format!("{line}\n").as_bytes());
        assert!(sent.is_ok(), "{line}: {sent:?}");
        self.reply()
    }
}

/// The code of a reply.
fn code(reply: &str) -> &str {
    let last = reply.lines().rfind(|line| !line.is_empty());
    last.and_then(|line| line.get(..4)).unwrap_or_default()
}

/// The data of a reply, without what differs from one switch or run to the next.
fn shape(reply: &str) -> Option<Vec<String>> {
    let (_, data) = reply.split_once("0000 DATA END WITH '.'\n")?;
    let (data, _) = data.rsplit_once(".\n")?;
    let line = |line: &str| {
        let line = line.split(" : ").next().unwrap_or_default();
        let words = line
            .split_whitespace()
            .map(|word| match word.contains("/w/") {
                true => "PATH".to_owned(),
                // Descriptors, process ids, times, counts.
                false => {
                    let parts = word.split(|c: char| c.is_ascii_digit());
                    // The parts between the digits of a number are empty.
                    let mut parts: Vec<&str> = parts.collect();
                    parts.dedup_by(|next, last| next.is_empty() && last.is_empty());
                    parts.join("N")
                }
            });
        let text = words.collect::<Vec<_>>().join(" ");
        let mac = text.find("MAC ").map(|at| &text[..at]);
        mac.map_or(text.clone(), str::to_owned)
    };
    Some(data.lines().map(line).collect())
}

/// Commands whose replies are the same, in this order. A port 5 and another have clients.
const SAME: &[&str] = &[
    "",
    "version",
    "nonsense",
    "port",
    "PORT/PRINT",
    "showinfo",
    "ds/showinfo",
    "port/showinfo",
    "port/print",
    "port/allprint",
    " port/print 5",
    "port/print 7",
    "vlan/print",
    "vlan/allprint",
    "vlan/print 0",
    "vlan/print 10",
    "vlan/create 10",
    "vlan/create 10",
    "vlan/create 0",
    "vlan/create 4095",
    "vlan/create x",
    "vlan/create",
    "vlan/remove 11",
    "vlan/addport 10 5",
    "vlan/addport 11 5",
    "vlan/addport 10 99",
    "vlan/addport 10",
    "vlan/print",
    "vlan/remove 10",
    "port/setvlan 5 10",
    "vlan/print 10",
    "port/print 5",
    "port/setvlan 5 12",
    "port/setvlan 77 10",
    "vlan/delport 11 5",
    "vlan/delport 10 9",
    "vlan/delport 10 5",
    "port/setvlan 5 0",
    "vlan/delport 10 5",
    "vlan/delport 10 5",
    "vlan/delport 0 5",
    "vlan/delport 12 5",
    "vlan/delport 10 99",
    "vlan/delport 10",
    "vlan/allprint",
    "port/setvlan 5 4095",
    "port/print 5",
    "port/setvlan 5 0",
    "port/create 9",
    "port/create 9",
    "port/create 33",
    "port/createauto",
    "port/allprint 9",
    "port/allocatable 9 1",
    "port/allocatable 99 1",
    "port/allocatable 9",
    "port/setuser 9 root",
    "port/setuser 9 no_such_user",
    "port/setuser 99 root",
    "port/setgroup 9 root",
    "port/setgroup 9 no_such_group",
    "port/allprint 9",
    "port/setuser 9 NONE",
    "port/setgroup 9 ANY",
    "port/remove 5",
    "port/remove 9",
    "port/remove 9",
    "port/epclose 5 99",
    "port/epclose 8 1",
    "port/epclose 5",
    "port/resetcounter",
    "port/resetcounter 5",
    "port/sethub 1",
    "port/showinfo",
    "port/sethub 0",
    "port/setnumports 64",
    "port/showinfo",
    "port/setnumports 0",
    "port/setnumports -1",
    "hash/showinfo",
    "hash/setsize 256",
    "hash/setsize 0",
    "hash/setexpire 50",
    "hash/setgcint 5",
    "hash/setminper 0",
    "hash/print",
    "hash/find 02:00:00:00:00:01",
    "hash/find x",
    "hash/find",
    "fstp/showinfo",
    "fstp/setfstp 1",
    "fstp/showinfo",
    "fstp/print 9",
    "fstp/setedge 0 5 1",
    "fstp/setedge 9 5 1",
    "fstp/setedge 0 5",
    "fstp/setfstp 0",
    "plugin/list",
    "plugin/del x",
    "debug/list",
    "debug/list hash",
    "debug/list x",
    "debug/add port",
    "debug/add port/+",
    "debug/add x",
    "debug/list",
    "debug/del port",
    "debug/del port",
    "debug/del x",
    "load /nonexistent",
];

/// Commands whose codes are not the same: Debian's and ours.
const DIFFERENT: &[(&str, &str, &str)] = &[
    ("port/print x", "1006", "1022"),
    ("port/sethub", "1000", "1022"),
    ("port/create 0", "1000", "1022"),
    ("port/allocatable 8 1", "1006", "1000"),
    ("port/setnumports 3", "1098", "1000"),
    ("port/print 99999", "1022", "1006"),
    ("port/allprint 99999", "1022", "1006"),
    ("port/remove 99999", "1022", "1006"),
    ("port/resetcounter 31", "1000", "1006"),
    ("vlan/remove 0", "1098", "1022"),
    ("vlan/print 4095", "1022", "1006"),
    ("fstp/print 4095", "1022", "1006"),
    ("vlan/allprint 0", "1022", "1000"),
    ("load /tmp", "1000", "1022"),
    ("hash/setexpire 0", "1000", "1022"),
    ("vlan/create 4094", "1022", "1000"),
    ("vlan/addport 0 5", "1000", "1022"),
    ("hash/setminper 4", "1000", "1095"),
    ("fstp/bonus 0 5 10", "1000", "1095"),
    ("plugin/add /nonexistent.so", "1002", "1095"),
];

#[test]
fn the_replies_are_those_of_debians() {
    need!("vde_switch", "vde_plug", "unixterm");
    let lab = Lab::new();
    let theirs = ["-s", "deb", "-M", &lab.path("deb.mgmt"), "-n", "32"];
    let _theirs = lab.debian("vde_switch", theirs).spawn_piped();
    let _ours = ours(&lab, &["-s", "our", "-M", "our.mgmt", "-n", "32"]).spawn_piped();
    let mut clients = Vec::new();
    for name in ["deb", "our"] {
        lab.wait_for(&format!("{name}.mgmt"));
        for port in ["", "[5]"] {
            let vnl = format!("vde://{}{port}", lab.path(name));
            clients.push(lab.debian("vde_plug", [&vnl, "null://"]).spawn());
        }
    }
    let mut terms = ["deb.mgmt", "our.mgmt"].map(|socket| Term::new(&lab, socket));
    for term in &mut terms {
        let has_both = || term.ask("port/print").matches(" ACTIVE").count() == 2;
        wait_until("both clients have ports", PATIENCE, has_both);
    }
    for line in SAME {
        let [theirs, ours] = terms.each_mut().map(|term| term.ask(line));
        assert_eq!(code(&ours), code(&theirs), "{line}:\n{theirs}\n{ours}");
        let (Some(theirs), Some(ours)) = (shape(&theirs), shape(&ours)) else {
            assert_eq!(shape(&ours), shape(&theirs), "{line}");
            continue;
        };
        // Texts for people are our own, and there may be more lines.
        if line.starts_with("debug/list") || *line == "showinfo" {
            assert!(ours.len() >= theirs.len(), "{line}: {ours:?}");
            continue;
        }
        let mut left = ours.iter();
        let is_there = |wanted: &String| left.any(|line| line == wanted);
        assert!(
            theirs.iter().all(is_there),
            "{line}:\n{theirs:#?}\n{ours:#?}"
        );
        // A port is there once.
        if line.starts_with("vlan/print") {
            assert_eq!(ours, theirs, "{line}");
        }
    }
    let page = fs::read_to_string(repository().join("docs/switch.md")).unwrap();
    let (_, table) = page
        .split_once("### What differs from VDE's console")
        .unwrap();
    for (line, their_code, our_code) in DIFFERENT {
        let [theirs, ours] = terms.each_mut().map(|term| term.ask(line));
        assert_eq!(code(&theirs), *their_code, "{line}: {theirs}");
        assert_eq!(code(&ours), *our_code, "{line}: {ours}");
        let path = line.split(' ').next().unwrap();
        let is_documented = table.contains(&format!("`{path}")) || *our_code == "1022";
        assert!(
            is_documented,
            "docs/switch.md does not say that {line} differs"
        );
    }
    // All commands of Debian's are there, and in the page.
    let paths = |help: &str| {
        let lines = help
            .lines()
            .skip_while(|line| !line.starts_with("-----"))
            .skip(1);
        let lines = lines.take_while(|line| *line != ".");
        let paths = lines.filter_map(|line| line.split_whitespace().next());
        paths.map(str::to_owned).collect::<Vec<_>>()
    };
    let [theirs, ours] = terms.each_mut().map(|term| paths(&term.ask("help")));
    assert!(theirs.len() > 40, "{theirs:?}");
    for path in theirs {
        assert!(ours.contains(&path), "{path}: {ours:?}");
    }
    for path in ours.iter().filter(|path| path.contains('/')) {
        assert!(
            page.contains(&format!("`{path}")),
            "docs/switch.md has no {path}"
        );
    }
}

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn debians_tools_work_with_our_console() {
    need!("unixcmd", "vdeterm", "vde_switch");
    let lab = Lab::new();
    let theirs = ["-s", "deb", "-M", &lab.path("deb.mgmt"), "-d"];
    let _ours = ours(&lab, &["-s", "our", "-M", "our.mgmt"]).spawn_piped();
    lab.debian("vde_switch", theirs).ok();
    lab.wait_for("our.mgmt");
    let run = |socket: &str, line: &str| {
        let command = format!("unixcmd -s {socket} -f /etc/vde2/vdecmd {line} || echo $?");
        lab.sh(&command).ok()
    };
    for line in [
        "ds/showinfo",
        "vlan/create 7",
        "vlan/create 0",
        "vlan/print",
        "nonsense",
    ] {
        let [theirs, ours] = ["deb.mgmt", "our.mgmt"].map(|socket| run(socket, line));
        assert_eq!(ours.replace("/our", "/deb"), theirs, "{line}");
    }
    // vdeterm edits lines, so it reads a terminal.
    let script = "(sleep 0.5; echo vlan/print; sleep 1; echo logout; sleep 0.5) |
        script -qec 'vdeterm our.mgmt' /dev/null";
    let shown = lab.sh(script).ok();
    assert!(shown.contains("VLAN 0007"), "{shown}");
    lab.sh("unixcmd -s deb.mgmt -f /etc/vde2/vdecmd shutdown || :")
        .ok();
    run("our.mgmt", "shutdown");
    wait_until("both switches end", PATIENCE, || {
        !lab.dir().join("deb").exists() && !lab.dir().join("our").exists()
    });
}

/// NixOS's test driver, nixos/lib/test-driver/src/test_driver/vlan.py.
#[test]
fn the_sequence_of_nixos_test_driver() {
    need!("guest", "qemu-system-x86_64", "vde_plug2tap");
    let lab = Lab::new();
    let directory = lab.path("vde1.ctl");
    let args = ["--sock", &*directory, "--dirmode", "0700", "--hub"];
    let (switch, mut input) = ours(&lab, &args).spawn_piped();
    input.write_all(b"version\nshowinfo\n").unwrap();
    wait_until("the switch answers", PATIENCE, || {
        switch.stdout().contains("1000 Success")
    });
    let said = switch.stdout();
    assert!(
        said.starts_with("1038 Function not implemented\n0000 DATA"),
        "{said}"
    );
    let made = |name: &str| fs::metadata(Path::new(&directory).join(name));
    assert_eq!(made("").unwrap().permissions().mode() & 0o777, 0o700);
    assert!(made("ctl").is_ok());

    // As an ordinary user only one's own namespace has taps.
    let member = |address: &str, plug: &str| {
        let session = lab.vdens(["--root", "no", "sh"]).session();
        session.ok(&format!("{plug}tap0 >/dev/null 2>&1 & plug=$!"));
        let up = "ip link show tap0 >/dev/null 2>&1";
        wait_until("the tap is there", PATIENCE, || session.run(up).0 == 0);
        session.ok(&format!(
            "ip address add {address}/24 dev tap0; ip link set tap0 up"
        ));
        session
    };
    let theirs = member("10.0.0.1", &format!("vde_plug2tap -s {directory} "));
    let vde_plug = lab.bin().join("vde_plug");
    let plug = format!("{} vde://{directory} tap://", vde_plug.display());
    let ours = member("10.0.0.2", &plug);
    let guest = crate::vm::guest(&lab, &directory);
    guest.address("eth0", "10.0.0.3/24");
    theirs.ping("10.0.0.2");
    ours.ping("10.0.0.3");
    guest.ping("10.0.0.1");
    for member in [&theirs, &ours] {
        member.ok("kill $plug; wait $plug || :");
    }
    drop((theirs, ours, guest));
    // So the driver ends it.
    drop(input);
    let output = switch.wait(PATIENCE);
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert!(!Path::new(&directory).exists());
}

/// What a console says, up to and with its `count`-th prompt.
#[track_caller]
fn hear(console: &mut UnixStream, count: usize) -> String {
    let limited = console.set_read_timeout(Some(stretched(PATIENCE)));
    assert!(limited.is_ok(), "{limited:?}");
    let mut heard = String::new();
    let mut bytes = [0; 4096];
    while heard.matches(PROMPT).count() < count {
        let length = console.read(&mut bytes).unwrap_or_default();
        assert!(length > 0, "the console has said only {heard:?}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    heard
}

fn connect(lab: &Lab, socket: &str) -> UnixStream {
    let path = lab.path(socket);
    UnixStream::connect(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn lines_come_as_they_like_and_no_client_waits_for_another() {
    let lab = Lab::new();
    let _switch = ours(&lab, &["-s", "sw", "-M", "m", "--nostdin"]).spawn();
    lab.wait_for("m");
    // It asks for more than it will ever read, and for more than the sockets hold.
    let mut deaf = connect(&lab, "m");
    deaf.set_nonblocking(true).unwrap();
    let questions = "help\n".repeat(10_000);
    let mut asked = 0;
    while let Ok(length) = deaf.write(&questions.as_bytes()[asked % questions.len()..]) {
        asked += length;
        if asked > 2 * questions.len() {
            break;
        }
    }
    let mut console = connect(&lab, "m");
    hear(&mut console, 1);
    // Together.
    console
        .write_all(b"vlan/create 7\nversion\n\nvlan/create 7\nvlan/print\n")
        .unwrap();
    let said = hear(&mut console, 5).replace(PROMPT, "");
    let codes: Vec<_> = said.lines().filter(|line| line.starts_with('1')).collect();
    let wanted = [
        "1000 Success",
        "1038 Function not implemented",
        "1017 File exists",
    ];
    assert_eq!(&codes[..2], &wanted[..2], "{said}");
    assert!(codes[2].starts_with(wanted[2]), "{said}");
    assert!(said.contains("VLAN 0007\n"), "{said}");
    // In pieces.
    for piece in ["vl", "an/rem", "ove 7", "\r", "\n"] {
        console.write_all(piece.as_bytes()).unwrap();
    }
    assert!(hear(&mut console, 1).starts_with("1000 Success\n"));
    // Without an end, as vdeterm does.
    console.write_all(b"version").unwrap();
    assert!(hear(&mut console, 1).starts_with("1038 "));
    // Too long, then binary.
    console.write_all(&[b'x'; 100_000]).unwrap();
    console.write_all(b"\n").unwrap();
    assert!(hear(&mut console, 1).starts_with("1022 Invalid argument: the line is too long\n"));
    let bytes: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
    console.write_all(&bytes).unwrap();
    console.write_all(b"\nport/print\0x\n").unwrap();
    assert_eq!(hear(&mut console, 2).matches("1038 ").count(), 2);
    // A client that leaves amid a line, and one that ends its side first.
    connect(&lab, "m").write_all(b"port/pri").unwrap();
    let mut last = connect(&lab, "m");
    last.write_all(b"version").unwrap();
    last.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    last.read_to_string(&mut said).unwrap();
    assert!(said.contains("1038 "), "{said}");
    console.write_all(b"logout\n").unwrap();
    let mut said = String::new();
    console.read_to_string(&mut said).unwrap();
    assert_eq!(said, "9999 END OF SESSION");
    drop(deaf);
}

#[test]
fn there_are_only_so_many_sessions() {
    let lab = Lab::new();
    let _switch = ours(&lab, &["-s", "sw", "-M", "m", "--nostdin"]).spawn();
    lab.wait_for("m");
    let mut consoles: Vec<_> = (0..32).map(|_| connect(&lab, "m")).collect();
    consoles
        .iter_mut()
        .for_each(|console| drop(hear(console, 1)));
    let mut next = connect(&lab, "m");
    next.set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(next.read(&mut [0; 10]).is_err(), "it has been greeted");
    drop(consoles.pop());
    hear(&mut next, 1);
}

#[test]
fn events_are_shown_to_those_who_want_them() {
    let lab = Lab::new();
    let _switch = ours(&lab, &["-s", "sw", "-M", "m", "--nostdin"]).spawn();
    lab.wait_for("m");
    let [mut watcher, mut other] = [connect(&lab, "m"), connect(&lab, "m")];
    for (console, line) in [
        (&mut watcher, "debug/add port\n"),
        (&mut other, "debug/list\n"),
    ] {
        console.write_all(line.as_bytes()).unwrap();
        let said = hear(console, 2);
        assert!(
            said.contains("1000 Success") && !said.contains(" ON "),
            "{said}"
        );
    }
    let client = lab.vde_plug([&lab.vnl("vde", "sw"), "null://"]).spawn();
    let mut said = String::new();
    let mut bytes = [0; 4096];
    watcher.set_read_timeout(Some(stretched(PATIENCE))).unwrap();
    while !said.contains("3021 port/+ ") {
        let length = watcher.read(&mut bytes).unwrap();
        said.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    drop(client);
    while !said.contains("3022 port/- ") {
        let length = watcher.read(&mut bytes).unwrap();
        said.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    other.write_all(b"version\n").unwrap();
    let said = hear(&mut other, 1);
    assert!(!said.contains("302"), "{said}");
}

#[test]
fn a_signal_removes_everything() {
    let lab = Lab::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (switch, _input) = ours(&lab, &["-s", "sw", "-M", "m", "-p", "pid"]).spawn_piped();
        lab.wait_for("pid");
        lab.wait_for("sw/ctl");
        let pid = fs::read_to_string(lab.path("pid")).unwrap();
        assert_eq!(pid, format!("{}\n", switch.pid()));
        let _client = connect(&lab, "m");
        switch.signal(signal);
        assert_eq!(switch.wait(stretched(PATIENCE)).code(), Some(0));
        for left in ["sw", "m", "pid"] {
            assert!(!lab.dir().join(left).exists(), "{left}");
        }
    }
}

#[test]
fn as_a_daemon_that_is_ended_by_its_console() {
    let lab = Lab::new();
    // When the command returns, everything is there. A file of commands has been executed.
    lab.write(
        "rc",
        "# a comment\nvlan/create 7\nport/create 3\nload more\nport/setvlan 3 9\n",
    );
    let more = lab.write("more", "vlan/create 8\nlogout\nvlan/create 9\n");
    let rc = fs::read_to_string(lab.path("rc"))
        .unwrap()
        .replace("more", &more);
    lab.write("rc", rc);
    let args = [
        "-s",
        "sw",
        "-M",
        "m",
        "--mgmtmode",
        "660",
        "-m",
        "660",
        "-d",
        "-p",
        "pid",
    ];
    let output = ours(&lab, &args).args(["-f", "rc", "-F"]).run();
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stderr.contains("rc, line 5: 1006 No such device"),
        "{output:?}"
    );
    let mode = |name: &str| fs::metadata(lab.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode("m"), mode("sw/ctl"), mode("sw")),
        (0o660, 0o660, 0o2710)
    );
    let mut console = connect(&lab, "m");
    hear(&mut console, 1);
    console.write_all(b"vlan/print\nfstp/showinfo\n").unwrap();
    let said = hear(&mut console, 2);
    for words in ["VLAN 0007\n", "VLAN 0008\n", "FSTP=true"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("VLAN 0009"), "{said}");
    let pid: i32 = fs::read_to_string(lab.path("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    console.write_all(b"shutdown\n").unwrap();
    let mut said = String::new();
    console.read_to_string(&mut said).unwrap();
    assert_eq!(said, "9999 END OF SESSION");
    wait_until("the daemon ends", stretched(PATIENCE), || {
        !lab.dir().join("pid").exists() && name(pid).is_none()
    });
    assert!(!lab.dir().join("sw").exists() && !lab.dir().join("m").exists());
}

#[test]
fn taps_are_ports() {
    need!("ping");
    let lab = Lab::new();
    let directory = lab.path("sw");
    let near = lab.vdens(["--root", "no", "sh"]).session();
    let switch = lab.bin().join("vde_switch");
    near.ok(&format!(
        "{} -s {directory} -M {directory}.m -d -p {directory}.pid -t t0 -t t1",
        switch.display()
    ));
    near.ok("ip address add 10.0.0.1/24 dev t0; ip link set t0 up");
    near.ok("ip address add 10.0.1.1/24 dev t1; ip link set t1 up");
    let far = lab
        .vdens(["--addr", "10.0.0.2/24", &lab.vnl("vde", "sw"), "sh"])
        .session();
    far.ok("ip address add 10.0.1.2/24 dev vde0");
    far.ping("10.0.0.1");
    far.ping("10.0.1.1");
    let mut console = connect(&lab, "sw.m");
    hear(&mut console, 1);
    console.write_all(b"port/print\n").unwrap();
    let said = hear(&mut console, 1);
    assert_eq!(said.matches("  -- endpoint ID ").count(), 3, "{said}");
    drop(far);
    near.ok(&format!(
        "kill $(cat {directory}.pid); while [ -e {directory}.pid ]; do sleep 0.05; done"
    ));
}

#[test]
fn a_switch_that_dies_takes_the_program_with_it() {
    let lab = Lab::new();
    lab.expect("sw");
    let (program, _input) = ours(&lab, &["-s", "sw", "-M", "m", "-p", "pid"]).spawn_piped();
    lab.wait_for("pid");
    let processes = children(program.pid());
    assert_eq!(processes.len(), 1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(processes[0]), Signal::SIGKILL).unwrap();
    let output = program.wait(stretched(PATIENCE));
    assert_eq!(output.code(), Some(1), "{output:?}");
    assert!(
        output.stderr.contains("has ended: signal SIGKILL"),
        "{output:?}"
    );
    assert!(!lab.dir().join("m").exists() && !lab.dir().join("pid").exists());
    // The next one takes over what was left.
    let (next, input) = ours(&lab, &["-s", "sw", "-M", "m"]).spawn_piped();
    lab.wait_for("m");
    drop(input);
    assert_eq!(next.wait(PATIENCE).code(), Some(0));
    assert!(!lab.dir().join("sw").exists());
}

#[test]
fn a_program_that_is_killed_takes_the_switch_with_it() {
    let lab = Lab::new();
    lab.expect("m");
    let (program, _input) = ours(&lab, &["-s", "sw", "-M", "m"]).spawn_piped();
    lab.wait_for("m");
    lab.wait_for("sw/ctl");
    program.signal(Signal::SIGKILL);
    assert!(becomes_true(stretched(PATIENCE), || !lab
        .dir()
        .join("sw")
        .exists()));
    // A stale management socket is in nobody's way.
    let (next, input) = ours(&lab, &["-s", "sw", "-M", "m"]).spawn_piped();
    wait_until("it listens", PATIENCE, || {
        UnixStream::connect(lab.path("m")).is_ok()
    });
    drop(input);
    assert_eq!(next.wait(PATIENCE).code(), Some(0));
}

#[test]
fn mistakes_are_refused_and_leave_nothing() {
    let lab = Lab::new();
    for (args, words) in [
        (&["foo"][..], &["unexpected argument 'foo'"][..]),
        (&["-m", "9x"], &["9x", "--mode"]),
        (&["-n", "0"], &["--numports"]),
        (&["-n", "16777216"], &["16777216", "--numports"]),
        (&["--macaddr", "x"], &["x", "six hexadecimal bytes"]),
        (&["--macaddr", "01:00:00:00:00:00"], &["group"]),
        (&["-g", "no_such_group"], &["no_such_group"]),
        (
            &["--mgmtgroup", "no_such_group", "-M", "m"],
            &["no_such_group"],
        ),
        (&["-M", "/nonexistent/m"], &["a socket at /nonexistent/m:"]),
        (&["-p", "/nonexistent/pid"], &["/nonexistent/pid"]),
        (&["-f", "/nonexistent"], &["/nonexistent", "No such file"]),
        (&["-s", "/nonexistent/sw"], &["/nonexistent"]),
        (
            &["-f", "/tmp"],
            &["cannot read /tmp: it is not a regular file"],
        ),
        (&["--priority", "1"], &["'1'", "multiple of 4096"]),
        (&["-t", "no_such_tap"], &["no_such_tap"]),
        (&["--mgmtmode", "600"], &["--mgmt"]),
    ] {
        let sock = ["-s", "sw"];
        let has_sock = args.contains(&"-s");
        for daemon in [&[][..], &["-d"]] {
            let sock = if has_sock { &[][..] } else { &sock[..] };
            let args = [sock, args, daemon].concat();
            let refused = ours(&lab, &args).refused(words);
            // It has no such option.
            assert!(!refused.stderr.contains("--wait"), "{refused:?}");
            for left in ["sw", "m"] {
                assert!(!lab.dir().join(left).exists(), "{args:?} left {left}");
            }
        }
    }
    // What fails in a file of commands is told, also in one that it loads.
    let more = lab.write("more", "vlan/create 7\nvlan/create 5000\n");
    lab.write("rc", format!("load {more}\nnonsense\n"));
    let (told, input) = ours(&lab, &["-s", "sw", "-f", "rc"]).spawn_piped();
    drop(input);
    let told = told.wait(PATIENCE).stderr;
    for words in ["rc, line 1: 1022 Invalid argument", "rc, line 2: 1038 "] {
        assert!(told.contains(words), "{told}");
    }
    // What is in use.
    let (_first, _input) = ours(&lab, &["-s", "sw", "-M", "m"]).spawn_piped();
    lab.wait_for("m");
    ours(&lab, &["-s", "sw"]).refused(&["/sw"]);
    ours(&lab, &["-s", "sw2", "-M", "m"]).refused(&["management socket", "is in use"]);
    lab.write("file", "x");
    ours(&lab, &["-s", "sw2", "-M", "file"]).refused(&["/file is there and is not a socket"]);
    assert!(!lab.dir().join("sw2").exists());
}

#[test]
fn vdectl_shows_and_changes_a_switch() {
    let lab = Lab::new();
    let idle = lab.vdectl(["switch", "show"]).run();
    assert!(idle.stderr.contains("no switch of yours"), "{idle:?}");
    let switch = lab.vde_plug([&lab.vnl("switch", "sw"), "null://"]).spawn();
    let _hub = lab
        .vdens(["--name", "hubby", &lab.vnl("hub", "hub"), "sleep", "999"])
        .spawn();
    lab.wait_for("sw/ctl");
    lab.wait_for("hub/ctl");
    let set = |words: &str| {
        let words: Vec<_> = words.split(' ').collect();
        lab.vdectl([&["switch", "set"], &*words].concat())
    };
    let show = |words: &str| {
        lab.vdectl(format!("switch show {words}").trim().split(' '))
            .ok()
    };
    let all = show("");
    for words in ["/sw  switch\n", "/hub  hub\n"] {
        assert!(all.contains(words), "{words}: {all}");
    }
    // By its directory, its process and its session.
    set("sw vlan 10 create port 3 untagged 10 tagged 0").refused(&["cannot change", "no tag"]);
    assert!(
        !show("sw vlans").contains("10"),
        "a part of what was refused was done"
    );
    set("sw vlan 10 create port 3 untagged 10 lock 02:00:00:00:00:01").ok();
    set(&format!("{} expiry 7 hub on", switch.pid())).ok();
    set("hubby hub off").ok();
    let _client = lab
        .vde_plug([&format!("vde://{}[3]", lab.path("sw")), "null://"])
        .spawn();
    let ports = || show("sw ports");
    wait_until("the client is there", PATIENCE, || {
        ports().contains("vde_plug")
    });
    let said = ports();
    let row = said.lines().find(|line| line.starts_with('3')).unwrap();
    assert!(
        row.contains("10") && row.contains("lock 02:00:00:00:00:01"),
        "{said}"
    );
    assert_eq!(
        show("sw vlans")
            .lines()
            .last()
            .unwrap()
            .split_whitespace()
            .nth(2),
        Some("3")
    );
    assert!(show("hubby").contains("/hub  switch\n"));
    for part in ["stations", "stp", "events"] {
        show(&format!("sw {part}"));
    }
    set("sw hello 1 max-age 6 forward-delay 4 stp on port 3 guard on cost 7 priority 16").ok();
    let times = "hello 1 s, max age 6 s, forward delay 4 s";
    assert!(show("sw").contains(times) && show("sw stp").contains(times));
    wait_until("the port in the tree", PATIENCE, || {
        let tree = show("sw stp");
        let mut rows = tree.lines().map(|row| row.split_whitespace().collect());
        rows.any(|row: Vec<&str>| row == ["3", "designated", "forwarding", "7", "16", "yes"])
    });
    assert!(show("sw ports").contains("guard on"));
    // What programs read.
    let json: Value = serde_json::from_str(&show("--json sw ports")).unwrap();
    assert_eq!(json[0]["switch"]["expiry"], 7);
    assert_eq!(json[0]["switch"]["kind"], "hub");
    let ports = json[0]["ports"].as_array().unwrap();
    let port = ports.iter().find(|port| port["number"] == 3).unwrap();
    assert_eq!(port["untagged"], 10);
    // Mistakes.
    set("nosuch hub on").refused(&["'nosuch' is no switch", "vdectl switch show"]);
    set("sw port 3 colour red").refused(&["unknown word 'colour'", "untagged"]);
    set("sw port 3 user no_such_user").refused(&["no_such_user"]);
    set("sw vlan 4095 create").refused(&["from 1 to 4094"]);
    set("sw max-age 40").refused(&["cannot change", "2*(forward delay-1) >= maximum age"]);
    set("sw port 3 priority 17").refused(&["multiple of 16"]);
    let long = format!("sw {}", ["flush"; 400].join(" "));
    set(&long).refused(&["cannot change", "more than 4096", "less at a time"]);
    lab.vdectl(["switch", "show", "sw", "colours"])
        .refused(&["colours", "ports"]);
}

#[test]
fn a_terminal_has_a_prompt() {
    need!("script");
    let lab = Lab::new();
    let switch = lab.bin().join("vde_switch");
    let script = format!(
        "(sleep 0.5; echo ds/showinfo; echo logout; echo shutdown; sleep 0.5) |
         script -qec '{} -s sw; echo status $?' /dev/null",
        switch.display()
    );
    let shown = lab.sh(&script).ok();
    assert_eq!(shown.matches("vde$").count(), 3, "{shown}");
    assert!(
        shown.contains("1000 Success") && shown.contains("status 0"),
        "{shown}"
    );
}
