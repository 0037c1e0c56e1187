//! `vdectl capture`: what is captured is what was on the link, in a file that others read.

use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use vdens_tests::{Lab, Output, PATIENCE, Proc, Session, need, stretched, wait_until};

/// Two ends of a cable, A with 10.0.0.1 and B with 10.0.0.2, and the name of A's interface.
fn cable<'lab>(lab: &'lab Lab, options: &[&str]) -> (Session<'lab>, Session<'lab>, String) {
    let wire = lab.vnl("ptp", "cable");
    let start = |number: u8| {
        let address = format!("10.0.0.{number}/24");
        let vdens = lab.vdens(["--addr", &address]).args(options);
        vdens.args([wire.as_str(), "sh"]).session()
    };
    let (a, b) = (start(1), start(2));
    a.ping("10.0.0.2");
    let link = format!("{}:vde0", a.proc().pid());
    (a, b, link)
}

/// Starts a capture, and waits until it captures.
fn capture<'lab>(lab: &'lab Lab, args: &[&str]) -> Proc<'lab> {
    let capture = lab.vdectl(["capture"]).args(args).spawn();
    wait_until("the capture begins", PATIENCE, || {
        assert!(capture.is_running(), "{}", capture.stderr());
        capture.stderr().contains("capturing on")
    });
    capture
}

/// Ends a capture, which must succeed and have lost nothing.
fn end(capture: Proc<'_>, signal: Signal) -> Output {
    capture.signal(signal);
    let output = capture.wait(PATIENCE);
    assert_eq!(output.code(), Some(0), "{output:#?}");
    assert!(
        output.stderr.contains(" frames captured, 0 lost"),
        "{output:#?}"
    );
    output
}

/// What tshark reads from a file: these fields of each frame that `filter` shows.
fn frames(lab: &Lab, file: &str, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let fields = fields.iter().flat_map(|field| ["-e", field]);
    let tshark = lab.command("tshark", ["-r", file, "-Y", filter, "-T", "fields"]);
    let text = tshark.args(fields).ok();
    let line = |line: &str| line.split('\t').map(str::to_owned).collect();
    text.lines().map(line).collect()
}

#[test]
fn a_capture_has_both_directions_and_others_read_it() {
    need!("tshark", "tcpdump");
    let lab = Lab::new();
    let (a, b, link) = cable(&lab, &[]);
    let other = format!("{}:vde0", b.proc().pid());
    let file = lab.path("c.pcapng");
    lab.expect("c.pcapng");
    let capture = capture(&lab, &[&link, &other, "-w", &file]);
    a.ok("ping -c 3 -i 0.01 -w 60 10.0.0.2");
    let output = end(capture, Signal::SIGINT);
    assert_eq!(
        output.stderr.matches(" frames captured").count(),
        2,
        "{output:#?}"
    );

    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "icmp.type",
        "frame.time_epoch",
    ];
    let seen = frames(&lab, &file, "icmp", &fields);
    let as_seen_by = |name: &str, out: &str| {
        let of = seen.iter().filter(|frame| frame[0] == name);
        let way = of.map(|frame| (frame[1] == out, frame[2].as_str()));
        way.collect::<Vec<_>>()
    };
    let sent = "0x00000002";
    let of_a: Vec<_> = [(true, "8"), (false, "0")].repeat(3);
    assert_eq!(as_seen_by(&link, sent), of_a, "{seen:?}");
    let of_b: Vec<_> = [(false, "8"), (true, "0")].repeat(3);
    assert_eq!(as_seen_by(&other, sent), of_b, "{seen:?}");
    // Nanoseconds: not all of them end in three zeros.
    let times: BTreeSet<_> = seen
        .iter()
        .map(|frame| &frame[3][frame[3].len() - 3..])
        .collect();
    assert!(times.len() > 1, "{times:?}");

    let about = lab.command("capinfos", [&file]).ok();
    for text in [
        "pcapng",
        "nanoseconds (9)",
        "vdectl",
        "Linux",
        &format!("Name = {link}"),
    ] {
        assert!(about.contains(text), "no {text}: {about}");
    }
    let read = lab.command("tcpdump", ["-nr", &file, "icmp"]).ok();
    assert_eq!(read.matches("ICMP echo request").count(), 6, "{read}");
}

#[test]
fn filters_and_lengths_choose_what_is_kept() {
    need!("tshark", "tcpdump");
    let lab = Lab::new();
    let (a, _b, link) = cable(&lab, &[]);
    let program = lab.sh("tcpdump -y EN10MB -ddd icmp[0]=0").ok();
    let program = format!("@{}", lab.write("replies", program));
    for (name, filter, types) in [
        ("all", "icmp and host 10.0.0.2", &["8", "0", "8", "0"][..]),
        ("replies.pcapng", &program, &["0", "0"]),
    ] {
        let file = lab.path(name);
        lab.expect(name);
        let args = [&link, "--filter", filter, "--snaplen", "60", "-w", &file];
        let capture = capture(&lab, &args);
        a.ok("ping -c 2 -i 0.01 -w 60 10.0.0.2; ip neigh flush all; ping -c 1 127.0.0.1 || true");
        end(capture, Signal::SIGTERM);
        let seen = frames(
            &lab,
            &file,
            "",
            &["icmp.type", "frame.len", "frame.cap_len"],
        );
        let expected: Vec<_> = types.iter().map(|kind| [*kind, "98", "60"]).collect();
        assert_eq!(seen, expected, "{filter}");
    }
    let bad = lab.write("bad", "2\n6 0 0 1\n");
    let bad = format!("@{bad}");
    let long = format!("@{}", lab.write("long", "x".repeat(1 << 20)));
    for (filter, why) in [
        (
            "icmp and",
            "does not understand the filter 'icmp and': can't parse",
        ),
        (bad.as_str(), "it has 1 instructions, not 2"),
        (&long, "does not start with the number"),
        ("@/nonexistent", "No such file"),
    ] {
        let vdectl = lab.vdectl(["capture", &link, "-w", "/dev/null", "--filter", filter]);
        vdectl.refused(&[why]);
    }
}

#[test]
fn a_pipe_is_read_while_the_capture_runs() {
    need!("tshark");
    let lab = Lab::new();
    let (a, _b, link) = cable(&lab, &[]);
    // The reader ends first: so does the capture, without complaint.
    let script = format!(
        "vdectl -q capture {link} -w - --filter icmp | tshark -l -i - -c 4 -T fields -e icmp.type"
    );
    let piped = lab.sh(&script).spawn();
    wait_until("frames are seen", PATIENCE, || {
        a.run("ping -c 2 -i 0.01 -w 10 10.0.0.2");
        !piped.is_running()
    });
    let output = piped.wait(PATIENCE);
    assert_eq!(output.code(), Some(0), "{output:#?}");
    assert_eq!(
        output.stdout.split_whitespace().collect::<Vec<_>>(),
        ["8", "0", "8", "0"]
    );
    let script = format!("{{ vdectl capture {link}; echo status $? >&2; }} | head -c 20 | wc -c");
    let headed = lab.sh(&script).spawn();
    wait_until("the pipe is closed", PATIENCE, || {
        a.run("ping -c 2 -i 0.01 -w 10 10.0.0.2");
        !headed.is_running()
    });
    let output = headed.wait(PATIENCE);
    assert_eq!(output.stdout.trim(), "20", "{output:#?}");
    assert!(output.stderr.contains("status 0"), "{output:#?}");
}

#[test]
fn a_reader_that_does_not_read_loses_frames_and_holds_nobody_up() {
    need!("iperf3");
    let lab = Lab::new();
    let (a, b, link) = cable(&lab, &[]);
    let script = format!("vdectl capture {link} -w - 2>capture.err | sleep 600");
    lab.expect("capture.err");
    let stuck = lab.sh(&script).leaving_its_group().spawn();
    wait_until("the capture begins", PATIENCE, || {
        fs::read_to_string(lab.path("capture.err")).is_ok_and(|text| text.contains("capturing on"))
    });
    b.start("iperf3 -s -1");
    let limit = stretched(Duration::from_secs(60));
    wait_until("the network goes on", limit, || {
        a.run_within(limit, "iperf3 -c 10.0.0.2 -n 100M").0 == 0
    });
    b.finish(limit);
    // It ends though nobody reads.
    lab.sh(&format!(
        "kill -INT $(pgrep -xf \"vdectl capture {link} -w -\")"
    ))
    .ok();
    let ended = || {
        let text = fs::read_to_string(lab.path("capture.err")).unwrap_or_default();
        text.contains("nobody reads the end of the capture") && text.contains(" lost")
    };
    wait_until("the capture ends", PATIENCE, ended);
    drop(stuck);
}

#[test]
fn a_capture_ends_with_its_links() {
    need!("tshark");
    let lab = Lab::new();
    let (a, b, link) = cable(&lab, &[]);
    let other = format!("{}:vde0", b.proc().pid());
    let file = lab.path("gone.pcapng");
    lab.expect("gone.pcapng");
    let capture = capture(&lab, &[&link, &other, "-w", &file]);
    a.ok("ping -c 2 -i 0.01 -w 60 10.0.0.2");
    // One goes away with its session, the other is deleted.
    b.exit(0);
    wait_until("it is told", PATIENCE, || {
        capture.stderr().contains(&format!("{other} is gone"))
    });
    assert!(capture.is_running(), "{}", capture.stderr());
    a.ok("ip link del vde0");
    let output = capture.wait(PATIENCE);
    assert_eq!(output.code(), Some(0), "{output:#?}");
    assert!(
        output.stderr.contains(&format!("{link} is gone")),
        "{output:#?}"
    );
    let seen = frames(&lab, &file, "icmp", &["frame.interface_name"]);
    assert_eq!(seen.len(), 8, "{seen:?}");
}

#[test]
fn a_file_that_cannot_grow_stays_readable() {
    need!("tshark", "iperf3");
    let lab = Lab::new();
    let (a, b, link) = cable(&lab, &[]);
    let file = lab.path("full.pcapng");
    lab.expect("full.pcapng");
    let script = format!(
        "trap '' XFSZ; ulimit -f 2000; exec vdectl capture {link} -w {file}" // 1,024,000 bytes
    );
    let capture = lab.sh(&script).spawn();
    wait_until("the capture begins", PATIENCE, || {
        capture.stderr().contains("capturing on")
    });
    b.start("iperf3 -s -1");
    let limit = stretched(Duration::from_secs(60));
    wait_until("frames are sent", limit, || {
        a.run_within(limit, "iperf3 -c 10.0.0.2 -n 20M").0 == 0
    });
    b.finish(limit);
    let output = capture.wait(PATIENCE);
    assert_eq!(output.code(), Some(125), "{output:#?}");
    let why = format!("cannot write the capture to {file}: File too large");
    assert!(output.stderr.contains(&why), "{output:#?}");
    let length = fs::metadata(&file).unwrap().len();
    assert!((500_000..=1_024_000).contains(&length), "{length}");
    // tshark complains of a file that is cut short.
    assert!(frames(&lab, &file, "tcp", &["frame.len"]).len() > 5);
    lab.vdectl(["capture", &link, "-w", "/nonexistent/file"])
        .refused(&["cannot write the capture to /nonexistent/file: No such"]);
}

#[test]
fn a_ring_of_files_keeps_the_newest() {
    need!("tshark");
    let lab = Lab::new();
    let (a, _b, link) = cable(&lab, &[]);
    let directory = lab.mkdir("ring");
    let file = format!("{directory}/r.pcapng");
    let capture = capture(&lab, &[&link, "-w", &file, "--ring", "5k", "--files", "2"]);
    let names = || {
        let names = fs::read_dir(&directory).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<_>>()
    };
    wait_until("the fourth file is written", PATIENCE, || {
        a.run("ping -c 20 -i 0.01 -w 60 10.0.0.2");
        names().contains("r_00004.pcapng")
    });
    end(capture, Signal::SIGINT);
    let names = names();
    assert_eq!(names.len(), 2, "{names:?}");
    for name in names {
        let file = format!("{directory}/{name}");
        let seen = frames(&lab, &file, "", &["frame.interface_name"]);
        assert!(seen.iter().all(|frame| frame[0] == link), "{seen:?}");
    }
}

#[test]
fn super_frames_and_vlan_tags_are_captured_as_they_are() {
    need!("tshark", "iperf3", "python3");
    let lab = Lab::new();
    let (a, b, link) = cable(&lab, &[]);
    let other = format!("{}:vde0", b.proc().pid());
    let file = lab.path("s.pcapng");
    lab.expect("s.pcapng");
    let capture = capture(&lab, &[&link, &other, "--snaplen", "100", "-w", &file]);
    // A frame of VLAN 5. The kernel of the far end takes the tag off.
    a.ok("python3 -c \"import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('vde0', 0))
s.send(bytes.fromhex('ffffffffffff020000000001' '81000005' '88b6') + bytes(60))\"");
    b.start("iperf3 -s -1");
    let limit = stretched(Duration::from_secs(60));
    wait_until("frames are sent", limit, || {
        a.run_within(limit, "iperf3 -c 10.0.0.2 -n 10M").0 == 0
    });
    b.finish(limit);
    end(capture, Signal::SIGINT);
    let fields = [
        "frame.interface_name",
        "eth.type",
        "vlan.etype",
        "frame.len",
    ];
    let mut tagged = frames(&lab, &file, "vlan.id == 5", &fields);
    let mut expected = [&link, &other].map(|name| [name, "0x8100", "0x88b6", "78"]);
    // The file has the frames of one interface in order.
    tagged.sort();
    expected.sort_unstable();
    assert_eq!(tagged, expected);
    let long = frames(&lab, &file, "tcp && frame.len > 9000", &fields);
    assert!(!long.is_empty());
}

#[test]
fn all_links_of_a_lab_are_captured_each_once() {
    need!("tshark");
    let lab = Lab::new();
    let text = "[nodes.h]
count = 2
[nodes.r]
[[links]]
ends = [\"h1:eth0=10.0.0.1/24\", \"r:eth0=10.0.0.9/24\"]
[[switches]]
name = \"lan\"
ports = [\"r:eth1=10.1.0.9/24\", \"h2:eth0=10.1.0.2/24\"]
";
    let lab_file = lab.write("wan.toml", text);
    lab.vdectl(["lab", "up", &lab_file]).ok();
    let file = lab.path("lab.pcapng");
    lab.expect("lab.pcapng");
    let filter = ["--filter", "icmp", "-w", &file];
    let words = ["--lab", "wan", filter[0], filter[1], filter[2], filter[3]];
    let all = capture(&lab, &words);
    for (node, address) in [("h1", "10.0.0.9"), ("h2", "10.1.0.9")] {
        let node = format!("wan/{node}");
        let ping = ["ping", "-nc", "1", "-w", "60", address];
        lab.vdectl(["lab", "exec", &node]).args(ping).ok();
    }
    end(all, Signal::SIGINT);
    let mut seen = frames(&lab, &file, "", &["frame.interface_name", "icmp.type"]);
    seen.sort();
    // The echo on the switch passes the links of both its ports.
    let links = ["wan/h1:eth0", "wan/h2:eth0", "wan/r:eth1"];
    let expected = links.map(|link| [[link, "0"], [link, "8"]]).concat();
    assert_eq!(seen, expected);

    // One node has its interfaces, which may be those of a link of the lab.
    let words = ["wan/r", "--lab", "wan", "-w", &file];
    let some = capture(&lab, &words);
    end(some, Signal::SIGINT);
    let about = lab.command("capinfos", ["-I", &file]).ok();
    assert_eq!(about.matches("Name = wan/").count(), 4, "{about}");

    let bare = lab.write("bare.toml", "[nodes.a]\n");
    lab.vdectl(["lab", "up", &bare]).ok();
    for (name, why) in [
        ("nobody", "no lab 'nobody' is running"),
        ("bare", "the lab 'bare' has no link"),
        ("../x", "'../x'"),
        ("", "name"),
    ] {
        lab.vdectl(["capture", "--lab", name, "-w", "/dev/null"])
            .refused(&[why]);
    }
    for name in ["bare", "wan"] {
        lab.vdectl(["lab", "down", name]).ok();
    }
}

#[test]
fn what_cannot_be_captured_is_refused() {
    let lab = Lab::new();
    let (_a, _b, link) = cable(&lab, &[]);
    let none = link.replace(":vde0", ":eth7");
    for (args, words) in [
        (vec![none.as_str(), "-w", "x"], &["eth7"][..]),
        (vec!["nobody:eth0", "-w", "x"], &["nobody"]),
        (
            vec![&link, "--ring", "1M"],
            &["--ring needs files", "-w FILE"],
        ),
        (vec![&link, "--ring", "0", "-w", "x"], &["500k"]),
        (vec![&link, "--files", "2", "-w", "x"], &["--ring"]),
        (vec![&link, "--snaplen", "0"], &["--snaplen"]),
        (vec![], &["LINK"]),
    ] {
        lab.vdectl(["capture"]).args(args).refused(words);
    }
}
