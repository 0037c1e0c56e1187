//! `vdectl top`: what all links move, on a terminal and in scripts.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vdens_tests::{Lab, PATIENCE, Tmux, need, wait_until};

/// The links as JSON has them, sorted.
#[track_caller]
fn links(lab: &Lab) -> Vec<Value> {
    let text = lab.vdectl(["top", "--json", "--interval", "0.3"]).ok();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    let links = value["links"].as_array().cloned();
    links.unwrap_or_else(|| panic!("{text}"))
}

/// Waits until the terminal's program is `name`: what was in front of it has ended.
#[track_caller]
fn wait_for_shell(terminal: &Tmux<'_>) {
    wait_until("the shell is back", PATIENCE, || {
        !terminal.screen().contains("q quit")
    });
    // A terminal in raw mode does not echo, and the alternate screen keeps nothing.
    let (shown, _) =
        terminal.ask("stty -a | grep -ow -e '-*echo' -e '-*icanon' | sort | tr '\\n' ' '");
    assert_eq!(shown.trim(), "echo icanon", "{}", terminal.screen());
}

#[test]
fn rates_for_scripts() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let b = lab.vdens(["--addr", "10.0.0.2/24", &vnl, "sh"]).session();
    b.ok(":");
    let ping = ["ping", "-q", "-i", "0.02", "-s", "1000", "10.0.0.2"];
    let a = lab
        .vdens(["--addr", "10.0.0.1/24", &vnl])
        .args(ping)
        .spawn();
    let _idle = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let name = |pid: i32| format!("vdens {pid}:vde0");
    let (first, second) = (name(a.pid()), name(b.proc().pid()));
    let mut found = Vec::new();
    wait_until("the pings are counted", PATIENCE, || {
        found = links(&lab);
        // 1042 bytes each, when the neighbours know each other.
        let is_ping = |link: &Value| {
            let rate = |what: &str| link["sent"][what].as_f64().unwrap_or_default();
            rate("frames") > 10.0 && rate("bits") > 8.0 * 900.0 * rate("frames")
        };
        found.len() == 4 && found[..2].iter().all(is_ping)
    });
    // Those that move something come first.
    let mut busy = [&found[0]["link"], &found[1]["link"]].map(|link| link.as_str().unwrap_or(""));
    busy.sort_unstable();
    let mut expected = [first.as_str(), &second];
    expected.sort_unstable();
    assert_eq!(busy, expected);
    for link in &found[..2] {
        assert_eq!(link["state"], "up", "{link:#}");
        assert_eq!(link["vnl"], vnl.as_str());
        for way in ["received", "sent"] {
            // 1042 bytes each; the other direction has as many.
            let rate = |what: &str| link[way][what].as_f64().unwrap_or_default();
            let size = rate("bits") / rate("frames");
            assert!((8.0 * 900.0..8.0 * 1050.0).contains(&size), "{link:#}");
            assert_eq!(link[way]["dropped"], 0.0, "{link:#}");
        }
    }
    assert!(
        found[3]["link"]
            .as_str()
            .is_some_and(|link| link.starts_with("vde_plug"))
    );
    let text = lab.vdectl(["top", "--once", "--interval", "0.2"]).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(
        lines[0].starts_with("LINK ") && lines[0].ends_with("DROP/s"),
        "{text}"
    );
    assert!(
        lines[1].starts_with("vdens ") && lines[1].contains("  up "),
        "{text}"
    );
    lab.vdectl(["top", "--interval", "0"])
        .refused(&["0.1 to 3600"]);
    // Without a terminal.
    lab.vdectl(["top"]).refused(&["needs a terminal", "--once"]);
}

#[test]
fn on_a_terminal_it_follows_the_links_and_the_keys() {
    need!("tmux");
    let lab = Lab::new();
    let gone = lab.vnl("ptp", "gone");
    let a = lab
        .vdens(["--multi", "null://", &gone, "--", "sh"])
        .session();
    a.ok("ip link set vde0 up");
    let pid = a.proc().pid();
    let terminal = lab.tmux();
    let start = format!("{}/vdectl top --interval 0.1", lab.bin().display());
    terminal.type_line(&start);
    terminal.wait_for("2 links, 1 down");
    let line = |name: &str| {
        let (screen, name) = (terminal.screen(), format!("vdens {pid}:{name}"));
        let place = screen.lines().position(|line| line.starts_with(&name));
        place.unwrap_or_else(|| panic!("{screen}"))
    };
    assert!(terminal.screen().contains("no carrier"));
    // null:// drops nothing and takes all: the link that moves something comes first.
    a.start("ping -q -c 100 -i 0.05 ff02::1%vde0 >/dev/null");
    wait_until("a sparkline", PATIENCE, || terminal.screen().contains('█'));
    assert!(line("vde0") < line("vde1"));
    terminal.press("n");
    assert!(line("vde0") < line("vde1"));
    // A session that ends leaves the screen.
    a.finish(PATIENCE);
    a.exit(0);
    terminal.wait_for("0 links");
    terminal.press("q");
    wait_for_shell(&terminal);
    // On a signal, too.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        terminal.type_line(&start);
        terminal.wait_for("q quit");
        let started = format!("{start} ");
        let mut processes = lab.processes().into_iter();
        let top = processes.find(|(_, line)| *line == started);
        let (pid, _) = top.expect("vdectl top runs");
        kill(Pid::from_raw(pid), signal).expect("it can be signalled");
        wait_for_shell(&terminal);
    }
    terminal.type_line(&start);
    terminal.wait_for("q quit");
    terminal.press("C-c");
    wait_for_shell(&terminal);
}
