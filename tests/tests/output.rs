//! What comes out of the programs, and what does not: other people's text is shown and not
//! executed, no reader of standard error stops or fails a program, and a report never ends its
//! sender nor harms its reader.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::process::ChildStdin;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use vdens_tests::{Lab, Output, PATIENCE, Proc, User, becomes_true, need, wait_until};

use crate::status::{process, status};

/// It sets a window's title, begins a line, clears the screen (in C1), and reverses what follows.
const EVIL: &str = "\x1b]0;owned\x07\nforged line\u{9b}2J\u{202e}";
/// How a part of it is shown.
const SHOWN: &str = "\\u{1b}]0;owned\\u{7}";

/// Nothing in a text is executed by a terminal, and there is no line but the program's own.
#[track_caller]
fn is_harmless(text: &str) {
    let is_passive = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
    assert!(text.chars().all(is_passive), "{text:?}");
    assert!(!text.lines().any(|l| l.starts_with("forged")), "{text}");
}

#[track_caller]
fn are_harmless(output: &Output) {
    is_harmless(&output.stdout);
    is_harmless(&output.stderr);
}

/// `vdectl status` as text, and as JSON that says the same.
#[track_caller]
fn shown(lab: &Lab) -> (String, Value) {
    let text = lab.vdectl(["status"]).ok();
    is_harmless(&text);
    let json = lab.vdectl(["status", "--json"]).ok();
    is_harmless(&json);
    (text, serde_json::from_str(&json).unwrap())
}

/// A directory of another user's that all can enter.
fn theirs(lab: &Lab, name: &str) -> String {
    let other = User::other();
    let path = lab.mkdir(name);
    chown(&path, Some(other.uid), Some(other.gid)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

/// A shell script that the user runs in the directory `name` below the lab's.
fn script_in(name: &[u8], script: &str) -> String {
    let octal: String = name.iter().map(|byte| format!("\\{byte:03o}")).collect();
    format!("d=$(printf '{octal}x'); mkdir -p \"${{d%x}}\"; cd \"${{d%x}}\"; {script}")
}

/// Attack: another user's switch grants a port at a path that a terminal executes.
#[test]
fn the_reply_of_a_hostile_switch() {
    need!("root", "python3");
    let lab = Lab::new();
    theirs(&lab, "sw");
    let switch = "import os, socket, struct, sys
s = socket.socket(socket.AF_UNIX); s.bind('sw/ctl'); os.chmod('sw/ctl', 0o777); s.listen(); print('here', flush=True)
while True:
    c = s.accept()[0]; c.recv(1000)
    c.sendall(struct.pack('=H108s', socket.AF_UNIX, f'{os.getcwd()}/sw/{sys.argv[1]}'.encode()))";
    let switch = lab.command("python3", ["-c", switch, EVIL]);
    let switch = switch.by(User::other()).spawn();
    wait_until("the switch", PATIENCE, || switch.stdout() == "here\n");
    let vnl = lab.vnl("vde", "sw");
    for program in [lab.vdens([&vnl, "true"]), lab.vde_plug([&vnl, "null://"])] {
        let output = program.refused(&[SHOWN]);
        are_harmless(&output);
    }
    // It is waited for: then the log and the status say why.
    let log = lab.path("log");
    lab.expect("log");
    let waiting = lab
        .vdens(["-vv", "--log-file", &log, "--wait", &vnl, "sh"])
        .session();
    waiting.ok(":");
    let said = || fs::read_to_string(&log).unwrap();
    wait_until("the log says it", PATIENCE, || said().contains(SHOWN));
    is_harmless(&said());
    wait_until("the status says it", PATIENCE, || {
        shown(&lab).0.contains(SHOWN)
    });
    let pid = waiting.proc().pid().cast_unsigned();
    let link = process(&shown(&lab).1, pid)["links"][0].clone();
    assert!(link["reason"].as_str().unwrap().contains(EVIL), "{link:#}");
}

/// Attack: another user plugs into this user's switch and describes itself so.
#[test]
fn the_description_of_a_hostile_client() {
    need!("root");
    let lab = Lab::new();
    fs::set_permissions(lab.dir(), Permissions::from_mode(0o755)).unwrap();
    let vnl = lab.vnl("switch", "sw[mode=0666]");
    let switch = lab.vde_plug(["-vv", "null://", &vnl]).spawn();
    lab.wait_for("sw/ctl");
    let client = lab.vde_plug(["-D", EVIL, &lab.vnl("vde", "sw"), "null://"]);
    let _client = client.by(User::other()).spawn();
    let is_there = || shown(&lab).0.contains(SHOWN);
    wait_until("the client is there", PATIENCE, is_there);
    let told = process(&shown(&lab).1, switch.pid().cast_unsigned());
    let client = &told["links"][1]["switch"]["ports"][0]["client"];
    let description = client["description"].as_str().unwrap();
    assert!(description.starts_with(EVIL), "{client:#}");
    is_harmless(&switch.stderr());
}

#[test]
fn names_of_files_and_words_of_the_command_line() {
    let lab = Lab::new();
    for name in ["evil", "plugins"] {
        lab.expect(&format!("{EVIL}{name}"));
    }
    let name = format!("{EVIL}evil");
    let script = script_in(name.as_bytes(), "exec vdens null:// sleep 1000");
    let session = lab.sh(&script).spawn();
    let pid = session.pid().cast_unsigned();
    let is_there = || process(&shown(&lab).1, pid)["directory"] == lab.path(&name);
    wait_until("the session", PATIENCE, is_there);
    let (text, _) = shown(&lab);
    assert!(text.contains(SHOWN), "{text}");
    // Plugins in such a directory, one of which is none.
    let plugins = lab.mkdir(&format!("{EVIL}plugins"));
    for file in ["libvdens_null.so", "libvdens_none.so"] {
        let path = format!("{plugins}/{file}");
        let data = fs::read(lab.bin().join("libvdens_null.so")).unwrap();
        fs::write(
            &path,
            &data[..if file.contains("none") {
                100
            } else {
                data.len()
            }],
        )
        .unwrap();
        lab.give(path.as_ref());
    }
    let missing = format!("{plugins}/{EVIL}/nothing");
    for (args, word) in [
        (&["plugin", "list"][..], SHOWN),
        (
            &["plugin", "list", "--json"],
            "\\u001b]0;owned\\u0007\\nforged line\\u009b",
        ),
        (&["doctor"], SHOWN),
        (&["doctor", "--json"], "\\u001b]0;owned"),
        (&["plugin", "check", "null"], SHOWN),
        (&["plugin", "check", "--json", "null"], "\\u001b]0;owned"),
        (&["plugin", "check", &missing], SHOWN),
        (&["status", EVIL], "\\u{9b}2J"),
        (&["--config", &missing, "null://"], SHOWN),
        (&["--log-file", &missing, "null://"], SHOWN),
        (&["--addr", EVIL, "null://"], "\\u{9b}2J"),
        (&["-i", EVIL, "null://"], SHOWN),
        (&["-R", EVIL, "null://"], SHOWN),
        (&[EVIL], SHOWN),
        (&[&format!("--{EVIL}")], "\\u{9b}2J"),
        (&[&format!("null://{EVIL}")], SHOWN),
        (&[&missing], SHOWN),
    ] {
        let options = ["-vv", "--plugin-dir", &plugins];
        let output = match args[0] {
            "plugin" | "doctor" | "status" => lab.vdectl(options),
            _ => lab.vdens(options),
        };
        let output = output.args(args).run();
        are_harmless(&output);
        let both = output.stdout + &output.stderr;
        assert!(both.contains(word), "{args:?}: {both}");
    }
    for args in [
        &["-c", EVIL][..],
        &["-p", &missing, "null://", "null://"],
        &["a", "b", EVIL],
    ] {
        let output = lab.vde_plug(args).refused(&[SHOWN]);
        are_harmless(&output);
    }
}

/// A working directory, plugins and arguments whose names are not UTF-8: whoever has them is asked,
/// and lives.
#[test]
fn names_that_are_not_utf_8() {
    let lab = Lab::new();
    let plugins = lab.dir().join(OsStr::from_bytes(b"p\xff"));
    fs::create_dir(&plugins).unwrap();
    lab.give(&plugins);
    for plugin in ["libvdens_null.so", "libvdens_switch.so"] {
        fs::copy(lab.bin().join(plugin), plugins.join(plugin)).unwrap();
        lab.give(&plugins.join(plugin));
    }
    let dir = b"d\xff\x1b";
    let start = |command: &str| {
        let script = format!(
            "p=$(printf '{}/p\\377'); exec {command}",
            lab.dir().display()
        );
        lab.sh(&script_in(dir, &script)).spawn()
    };
    let session = start("vdens --plugin-dir \"$p\" null:// sh -c 'exec sleep 1000' \"$p\"");
    let plug = start("vde_plug --plugin-dir \"$p\" null:// switch://../sw");
    lab.wait_for("sw/ctl");
    for round in 0..3 {
        let pids = [&session, &plug].map(|of| of.pid().cast_unsigned());
        let both = || {
            let json = shown(&lab).1;
            pids.map(|pid| process(&json, pid)["links"][0]["state"] == "up") == [true; 2]
        };
        wait_until("both are there", PATIENCE, both);
        let (text, json) = shown(&lab);
        for (process_of, command) in [(&session, "sh"), (&plug, "--plugin-dir")] {
            let told = process(&json, process_of.pid().cast_unsigned());
            let directory = lab.path("d\u{fffd}\x1b");
            assert_eq!(told["directory"], directory, "{round}: {told:#}");
            assert_eq!(told["command"][0], command, "{round}: {told:#}");
            let link = &told["links"][0];
            assert_eq!(link["restarts"], 0, "{round}: {told:#}");
            let file = lab.path("p\u{fffd}/libvdens_null.so");
            assert_eq!(link["plugin"]["file"], file, "{round}: {told:#}");
            assert!(process_of.is_running(), "{}", process_of.stderr());
        }
        assert!(text.contains("/d\u{fffd}\\u{1b}: "), "{text}");
    }
    for args in ["plugin list", "plugin list --json", "doctor --json"] {
        let script = format!(
            "p=$(printf '{}/p\\377'); vdectl --plugin-dir \"$p\" {args}",
            lab.dir().display()
        );
        let output = lab.sh(&script).run();
        are_harmless(&output);
        assert!(output.stdout.contains("p\u{fffd}"), "{args}: {output:?}");
    }
    drop((session, plug));
    for name in [&dir[..], b"p\xff"] {
        fs::remove_dir_all(lab.dir().join(OsStr::from_bytes(name))).unwrap();
    }
}

/// A pipe of one page for standard error, without a reader.
fn stuck_pipe(lab: &Lab) -> File {
    let path = lab.path("stderr");
    mkfifo(path.as_str(), Mode::from_bits_truncate(0o600)).unwrap();
    lab.give(path.as_ref());
    lab.expect("stderr");
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let reader = options.open(path).unwrap();
    fcntl(reader.as_fd(), FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    reader
}

/// What is in a pipe.
fn drain(mut pipe: &File) -> String {
    let mut text = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = pipe.read(&mut bytes) {
        text.extend_from_slice(&bytes[..read]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Attack: another user comes and goes until the log has filled the pipe that is a switch's
/// standard error.
#[test]
fn an_unread_pipe_stops_no_switch() {
    need!("root", "python3");
    let lab = Lab::new();
    fs::set_permissions(lab.dir(), Permissions::from_mode(0o755)).unwrap();
    let reader = stuck_pipe(&lab);
    let vnl = lab.vnl("switch", "sw[mode=0666]");
    let script = format!("exec vde_plug -vvv null:// '{vnl}' 2>stderr");
    let switch = lab.sh(&script).spawn();
    lab.wait_for("sw/ctl");
    let vnl = lab.vnl("vde", "sw");
    let member = |address| {
        let args = ["--no-panel", "--addr", address, &vnl, "sh"];
        lab.vdens(args).session()
    };
    let (a, b) = (member("10.0.0.1/24"), member("10.0.0.2/24"));
    // Each time the switch says at least that a port was opened and that it was closed.
    let come_and_go = "import os, socket, struct, sys, tempfile
path = tempfile.mkdtemp() + '/s'
d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.bind(path); os.chmod(path, 0o777); os.chmod(os.path.dirname(path), 0o755)
for _ in range(100):
    s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])
    s.sendall(struct.pack('=III', 0xfeedface, 3, 0) + struct.pack('=H108s', 1, path.encode()) + b'x' * 100)
    assert s.recv(200)
os.unlink(path); os.rmdir(os.path.dirname(path))";
    let args = ["-c", come_and_go, &lab.path("sw/ctl")];
    lab.command("python3", args).by(User::other()).ok();
    a.ping("10.0.0.2");
    drop((a, b));
    let text = drain(&reader);
    assert!(text.len() > 3000, "the pipe was not full: {text}");
    // There is room again, and the next line says what is missing.
    lab.vdens([&vnl, "true"]).ok();
    let mut text = String::new();
    let is_told = || {
        text.push_str(&drain(&reader));
        text.contains(" of the log were lost: standard error did not take them\n")
    };
    assert!(becomes_true(PATIENCE, is_told), "{}", drain(&reader));
    switch.terminate();
}

/// The same for a session, and for a failure that no reader sees.
#[test]
fn an_unread_pipe_stops_nothing_else() {
    let lab = Lab::new();
    let _reader = stuck_pipe(&lab);
    for (command, status) in [
        (
            "head -c 100000 /dev/zero >/dev/stderr & sleep 1; kill $!; true",
            0,
        ),
        ("vdens -vvv null:// sh -c 'exit 3'", 3),
        ("vdens nosuch:// true", 125),
        ("vdens null:// ./nosuch", 127),
        ("vde_plug --nosuch", 1),
    ] {
        let output = lab.sh(&format!("exec 2>stderr; {command}")).run();
        assert_eq!(output.code(), Some(status), "{command}: {output:?}");
    }
}

/// A full disk for standard error changes no exit status; for what was asked for it is a failure,
/// and for the log it is not.
#[test]
fn a_full_disk_behind_the_standard_streams() {
    let lab = Lab::new();
    lab.write("config", "nonsense");
    for (command, status) in [
        ("vdens --nosuch", 125),
        ("vdectl status x", 125),
        ("vdens --config config null:// true", 125),
        ("vdens nosuch:// true", 125),
        ("vdens null:// ./nosuch", 127),
        ("vdens null:// ./config", 126),
        ("vdens -vvv null:// sh -c 'exit 3'", 3),
        ("vdectl -vvv plugin list >/dev/null", 0),
        ("vde_plug --nosuch", 1),
        ("vde_plug a b c", 1),
        ("vde_plug nosuch:// null://", 1),
        ("vde_plug -c sh", 1),
        ("vde_plug -vvv null:// = true </dev/null", 1),
    ] {
        let script = |target| lab.sh(&format!("{command} 2>{target}")).run();
        let output = script("/dev/full");
        assert_eq!(output.code(), Some(status), "{command}: {output:?}");
    }
    let _session = lab.vdens(["null://", "sleep", "1000"]).spawn();
    let is_there = || !lab.vdectl(["status"]).ok().is_empty();
    wait_until("the session", PATIENCE, is_there);
    for (command, status) in [
        ("vdens --help", 125),
        ("vdens --version", 125),
        ("vdectl status", 125),
        ("vdectl status --json", 125),
        ("vdectl plugin list", 125),
        ("vdectl plugin list --json", 125),
        ("vdectl doctor", 125),
        ("vdectl doctor --json", 125),
        ("vdectl plugin check null", 125),
        ("vdectl plugin new abc", 125),
        ("vde_plug --help", 1),
        ("vde_plug --version", 1),
    ] {
        let output = lab.sh(&format!("{command} >/dev/full")).run();
        assert_eq!(output.code(), Some(status), "{command}: {output:?}");
        let line = output.stderr.trim_end();
        let told = "cannot write to standard output: No space left on device";
        assert!(line.ends_with(told), "{command}: {line}");
        let _ = fs::remove_dir_all(lab.path("abc"));
        // A reader that does not want all of it has had enough.
        let reads_nothing = format!("{{ sleep 0.3; {command}; echo $? >status; }} | :");
        lab.sh(&reads_nothing).run();
        let code = fs::read_to_string(lab.path("status")).unwrap_or_default();
        assert!(["0\n", "1\n"].contains(&&*code), "{command}: {code}");
        let _ = fs::remove_dir_all(lab.path("abc"));
        let _ = fs::remove_file(lab.path("status"));
    }
    for log in ["/dev/full", "log"] {
        lab.expect("log");
        let script = format!("vdens -vvv --log-file {log} null:// sh -c 'exit 3'");
        let output = lab.sh(&script).run();
        assert_eq!((output.code(), &*output.stderr), (Some(3), ""), "{log}");
    }
}

/// A process whose answers are nonsense, until the handle is dropped.
fn liar<'lab>(lab: &'lab Lab, how: &str, pid: Option<i32>) -> (Proc<'lab>, ChildStdin) {
    let program = lab.write("status.py", include_str!("output_status.py"));
    let command = lab.command("python3", [program.as_str(), how]);
    let command = command.args(pid.map(|pid| pid.to_string()));
    let (liar, stdin) = command.spawn_piped();
    wait_until(how, PATIENCE, || liar.stdout() == "ready\n");
    (liar, stdin)
}

/// Attack: another process of this user, a command inside say, answers for vdens.
#[test]
fn the_status_of_a_process_that_lies() {
    need!("python3");
    let lab = Lab::new();
    let session = lab.vdens(["null://", "sleep", "1000"]).spawn();
    let pid = session.pid().cast_unsigned();
    let is_there = || process(&status(&lab), pid)["links"][0]["state"] == "up";
    wait_until("the session", PATIENCE, is_there);
    for (how, error) in [
        ("absurd", None),
        ("negative", Some("makes no sense")),
        ("quoted", Some("makes no sense")),
        ("deep", Some("makes no sense")),
        ("compact", Some("more than 524288 objects")),
        ("sparse", Some("more than 16777216 bytes")),
        ("endless", Some("not in a file in memory")),
        ("pipe", Some("not in a file in memory")),
        ("words", Some("it cannot report")),
        ("jumble", Some("makes no sense")),
        ("flood", Some("makes no sense")),
        ("silent", Some("does not answer")),
    ] {
        let (liar, handle) = liar(&lab, how, None);
        for format in ["", "--json"] {
            // Addresses, of which little is memory, are in KiB.
            let script = format!("ulimit -v 1000000; exec vdectl status {format}");
            let output = lab.sh(&script).run();
            assert_eq!(output.code(), Some(0), "{how}: {}", output.stderr);
            are_harmless(&output);
            assert!(output.stdout.len() < 100_000, "{how}");
            assert!(output.stdout.contains("sleep"), "{how}: {}", output.stdout);
        }
        let (text, json) = shown(&lab);
        let told = process(&json, liar.pid().cast_unsigned());
        match error {
            None => assert!(
                text.contains("for 0 s, in ") && text.contains(SHOWN),
                "{text}"
            ),
            Some(error) => {
                let line = text.lines().find(|line| line.contains(error));
                assert!(line.is_some_and(|line| line.len() < 1000), "{how}: {text}");
                assert!(told["error"].as_str().unwrap().contains(error), "{told:#}");
            }
        }
        assert_eq!(process(&json, pid)["links"][0]["state"], "up", "{how}");
        drop(handle);
        liar.wait(PATIENCE);
    }
}

/// Attack: it answers for another.
#[test]
fn a_process_speaks_for_itself_only() {
    need!("python3");
    let lab = Lab::new();
    let session = lab.vdens(["null://", "sleep", "1000"]).spawn();
    let pid = session.pid().cast_unsigned();
    let is_there = || process(&status(&lab), pid)["links"][0]["state"] == "up";
    wait_until("the session", PATIENCE, is_there);
    // It says that it is process 1.
    let (own, own_handle) = liar(&lab, "absurd", None);
    let json = shown(&lab).1;
    assert_eq!(process(&json, 1), Value::Null, "{json:#}");
    let (other, other_handle) = liar(&lab, "absurd", Some(session.pid()));
    let (text, json) = shown(&lab);
    let told = process(&json, pid);
    let error = told["error"].as_str().expect("an error");
    assert!(error.contains("another process has its socket"), "{told:#}");
    assert!(text.contains(&format!("process {pid}: ")), "{text}");
    drop((own_handle, other_handle));
    own.wait(PATIENCE);
    other.wait(PATIENCE);
}
