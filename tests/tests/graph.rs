//! `vdectl graph`: what is connected with what, from the live state.

use std::fs;

use vdens_tests::{Lab, PATIENCE, need, wait_until};

/// The graph in a form.
#[track_caller]
fn graph(lab: &Lab, words: &[&str]) -> String {
    lab.vdectl(["graph"]).args(words).ok()
}

#[test]
fn a_switch_with_sessions_a_cable_and_a_peer_outside() {
    need!("vdens");
    let lab = Lab::new();
    let [cable, gone] = ["p", "gone"].map(|name| lab.vnl("ptp", name));
    let [switch, client] = ["switch", "vde"].map(|scheme| lab.vnl(scheme, "sw"));
    let plug = lab.vde_plug(["null://", &switch]).spawn();
    lab.wait_for("sw/ctl");
    let impaired = format!("netem://delay=20ms{{{cable}}}");
    let a = lab
        .vdens(["--multi", &client, &impaired, &gone, "--", "sh", "-i"])
        .session();
    a.ok(":");
    let b = lab
        .vdens([&cable, "sh", "-c", "exec sleep 1000", "<b>\"\\\n\u{1b}"])
        .spawn();
    let legacy = lab.debian("vdens", [&client, "sh"]).session();
    let [a_pid, plug_pid] = [a.proc().pid(), plug.pid()];
    let dir = lab.dir().display().to_string();
    for line in [
        format!("sh -i (vdens {a_pid})\n  vde0 up -- sw\n"),
        "\n  vde1 up -- sh -c exec sleep 1000 <b>\"\\\\n\\u{1b}:vde0 [delay=20ms]\n".to_owned(),
        format!("\n  vde2 DOWN -- ptp://{dir}/gone DOWN\n"),
        format!("sw (switch, vde_plug {plug_pid})\n  -- sh -i:vde0\n  -- "),
        "\n  vde0 up -- sh -i:vde1 [delay=20ms]\n".to_owned(),
    ] {
        wait_until(&line, PATIENCE, || graph(&lab, &[]).contains(&line));
    }
    // The legacy client is no process that answers.
    let text = graph(&lab, &[]);
    assert!(
        text.contains(&format!("process {}", legacy.proc().pid())),
        "{text}"
    );

    let svg = graph(&lab, &["--format", "svg"]);
    assert!(svg.contains("&lt;b&gt;&quot;\\\\n\\u{1b}</text>"), "{svg}");
    assert_eq!(svg.matches("stroke-dasharray=\"6 4\"").count(), 1, "{svg}");
    let file = lab.path("graph.svg");
    assert_eq!(graph(&lab, &["--format=svg", "-o", &file]), "");
    lab.expect("graph.svg");
    lab.command("python3", ["-c", WELL_FORMED, &file]).ok();
    let dot = graph(&lab, &["--format", "dot"]);
    assert!(dot.contains("color=red"), "{dot}");
    let mermaid = graph(&lab, &["--format", "mermaid"]);
    assert!(mermaid.contains("stroke:red"), "{mermaid}");
    if vdens_tests::lacks(&["dot"]).is_none() {
        let file = lab.write("graph.dot", dot);
        lab.command("dot", ["-Tsvg", &file]).ok();
    }
    // The cable is a part of what the switch leads to, and nobody is called so.
    assert_eq!(graph(&lab, &["sw"]), text);
    lab.vdectl(["graph", "nobody"])
        .refused(&["'nobody'", "vdectl graph shows"]);
    lab.vdectl(["graph", "--format", "png"])
        .refused(&["png", "svg"]);
    let nowhere = lab.path("missing/graph.svg");
    lab.vdectl(["graph", "-o", &nowhere])
        .refused(&[&nowhere, "No such file"]);
    drop(b);
    wait_until("the cable's other end is gone", PATIENCE, || {
        graph(&lab, &[]).contains(&format!("vde1 DOWN -- ptp://{dir}/p [delay=20ms] DOWN"))
    });
}

/// It fails unless the file is well-formed XML.
const WELL_FORMED: &str = "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])";

#[test]
fn nothing_to_draw() {
    let lab = Lab::new();
    assert_eq!(graph(&lab, &[]), "");
    let file = lab.path("graph.svg");
    graph(&lab, &["--format", "svg", "--output", &file]);
    lab.expect("graph.svg");
    let svg = fs::read_to_string(file).unwrap_or_default();
    assert!(
        svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
        "{svg}"
    );
}

#[test]
fn a_lab_beside_a_session_and_what_is_down_in_it() {
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    let text = format!(
        "[nodes.h]
count = 2
[nodes.r]
[[links]]
ends = [\"h1:eth0=10.0.0.1/24\", \"r:eth0=10.0.0.9/24\"]
both = {{ delay = \"20ms\" }}
[[switches]]
name = \"lan\"
ports = [\"r:eth1=10.1.0.9/24\", \"h2:eth0=10.1.0.2/24\"]
[[links]]
ends = [\"r:eth2\", \"{cable}\"]
"
    );
    let session = lab.vdens(["--name", "s", &cable, "sh"]).session();
    session.ok("ip link set vde0 up");
    let file = lab.write("wan.toml", text);
    lab.vdectl(["lab", "up", &file]).ok();
    for line in [
        "wan/lan (switch)\n  -- wan/h2:eth0\n  -- wan/r:eth1\n",
        "wan/h1 (namespace)\n  eth0 10.0.0.1/24 up -- wan/r:eth0 [delay=20ms]\n",
        "\n  eth2 up -- s:vde0\n",
    ] {
        wait_until(line, PATIENCE, || graph(&lab, &["wan"]).contains(line));
    }
    let exec = ["lab", "exec", "wan/h2", "ip", "link", "set", "eth0", "down"];
    lab.vdectl(exec).ok();
    let line = "\n  eth0 10.1.0.2/24 DOWN -- wan/lan DOWN\n";
    wait_until(line, PATIENCE, || graph(&lab, &["wan"]).contains(line));
    let svg = graph(&lab, &["wan", "--format", "svg"]);
    assert_eq!(svg.matches("stroke-dasharray=\"6 4\"").count(), 1, "{svg}");
    assert!(svg.contains(">delay=20ms</text>"), "{svg}");

    // The same links in `vdectl top`.
    let top = lab.vdectl(["top", "--once", "--interval", "0.2"]).ok();
    for name in ["wan/h1:eth0", "wan/r:eth2", "s:vde0"] {
        let line = top.lines().find(|line| line.starts_with(name));
        assert!(
            line.is_some_and(|line| line.contains(" up ")),
            "{name}: {top}"
        );
    }
    let down = top.lines().find(|line| line.starts_with("wan/h2:eth0"));
    assert!(down.is_some_and(|line| !line.contains(" up ")), "{top}");
    lab.vdectl(["lab", "down", "wan"]).ok();
}
