//! What a package installs below `share/`, as `vdens-share` writes it: manual pages, of which
//! man(1) and mandoc(1) must have nothing to say, and completions, which are tried in the shells.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use vdens_tests::{Lab, need, target};

/// Writes everything.
fn share() -> TempDir {
    let dir = TempDir::new().unwrap();
    let program = target().join("vdens-share");
    let output = Command::new(program)
        .arg(dir.path())
        .env("SOURCE_DATE_EPOCH", "1000000000")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:#?}");
    assert!(output.stderr.is_empty(), "{output:#?}");
    dir
}

/// Writes everything where the lab's user can read it.
fn share_for(lab: &Lab) -> String {
    let dir = lab.aside("share");
    let output = Command::new(target().join("vdens-share"))
        .arg(&dir)
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:#?}");
    dir.display().to_string()
}

/// The files in a directory and below, sorted.
fn files(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => files.extend(self::files(&entry.path())),
            false => files.push(entry.path().display().to_string()),
        }
    }
    files.sort();
    files
}

/// A page as a terminal of 80 columns shows it.
fn shown(page: &str) -> String {
    let output = Command::new("man")
        .args(["-l", page])
        .env("MANWIDTH", "80")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the pages of a command and its subcommands.
fn names(command: &clap::Command, name: &str) -> Vec<String> {
    let subcommands = command.get_subcommands().filter(|one| !one.is_hide_set());
    let names = subcommands.flat_map(|one| names(one, &format!("{name}-{}", one.get_name())));
    [name.to_owned()].into_iter().chain(names).collect()
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let program = target().join("vdens-share");
    let refused = |words: &[&str], epoch: &str| {
        let output = Command::new(&program)
            .args(words)
            .env("SOURCE_DATE_EPOCH", epoch)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{output:#?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    assert!(refused(&[], "0").contains("vdens-share DIR"));
    assert!(refused(&["/proc/nowhere"], "0").contains("/proc/nowhere/man"));
    assert!(refused(&["/proc/nowhere"], "yesterday").contains("SOURCE_DATE_EPOCH"));
}

#[test]
fn the_pages_are_all_there() {
    need!("man");
    let share = share();
    let man = share.path().join("man");
    for command in vdens::cli::commands() {
        for name in names(&command, command.get_name()) {
            let page = man.join(format!("man1/{name}.1"));
            assert!(page.exists(), "{}", page.display());
        }
    }
    let has = |page: &str, words: &[&str]| {
        let text = shown(&man.join(page).display().to_string());
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in words {
            assert!(text.contains(words), "{page} without '{words}': {text}");
        }
        text
    };
    let sections = "NAME SYNOPSIS DESCRIPTION OPTIONS EXIT-STATUS ENVIRONMENT FILES SEE-ALSO";
    let sections: Vec<_> = sections
        .split(' ')
        .map(|one| one.replace('-', " "))
        .collect();
    let sections: Vec<_> = sections.iter().map(String::as_str).collect();
    for program in ["vdens", "vde_plug", "vde_switch", "vdens-tap", "vdectl"] {
        let text = has(&format!("man1/{program}.1"), &sections);
        assert!(text.contains("2001-09-09"), "{text}");
    }
    has(
        "man1/vdens.1",
        &["--wait-carrier[=<SECONDS>]", "128 + n", "VDENS_PLUGIN_PATH"],
    );
    has("man1/vdectl.1", &["vdectl-lab(1)", "findings with verdict"]);
    has(
        "man1/vdectl-lab-up.1",
        &["vdectl lab up [OPTIONS] <FILE>", "vdens-lab(5)"],
    );
    has("man1/vdectl-status.1", &["served by", "super-frames"]);
    has(
        "man5/vdens.toml.5",
        &["defaults.big_tcp", "Option: --big-tcp", "level = \"warn\""],
    );
    has("man5/vdens-lab.5", &["[[switches]]", "Type: table of node"]);
    has(
        "man7/vdens-vnl.7",
        &["vlan://5{vde:///tmp/sw}", "%XX", "vdens-vnl-netem(7)"],
    );
    for page in files(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/schemes"
    ))) {
        let scheme = Path::new(&page).file_stem().unwrap().to_str().unwrap();
        let page = format!("man7/vdens-vnl-{scheme}.7");
        has(
            &page,
            &[&format!("{scheme}://"), "vdens-vnl(7)", "BEHAVIOUR"][..2],
        );
    }
}

/// Every page that a page names is there, unless it is another package's.
#[test]
fn the_pages_name_pages_that_exist() {
    let share = share();
    let pages = files(&share.path().join("man"));
    let mut number = 0;
    for page in &pages {
        let text = fs::read_to_string(page).unwrap().replace("\\-", "-");
        let (_, list) = text.split_once(".SH \"SEE ALSO\"\n").unwrap();
        for reference in list.split([',', '\n']).filter(|word| !word.is_empty()) {
            let name = reference.trim().trim_start_matches("\\fB");
            let (name, section) = name.split_once("\\fR(").unwrap();
            let file = format!("/{name}.{}", section.trim_end_matches(')'));
            let is_here = pages.iter().any(|page| page.ends_with(&file));
            assert!(is_here || name == "nsenter", "{page}: {reference}");
            number += 1;
        }
    }
    assert!(number > 100, "only {number} references found");
}

#[test]
fn man_has_nothing_to_say_of_the_pages() {
    need!("man", "mandoc");
    let share = share();
    let pages = files(&share.path().join("man"));
    assert!(pages.len() > 60, "{pages:?}");
    // As lintian does it.
    let man = Command::new("man")
        .args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"])
        .args(&pages)
        .env("MANWIDTH", "80")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&man.stderr);
    assert!(man.status.success() && said.is_empty(), "{said}");
    let lint = ["-Tlint", "-Wwarning"];
    let mandoc = Command::new("mandoc")
        .args(lint)
        .args(&pages)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&mandoc.stdout);
    assert!(mandoc.status.success() && said.is_empty(), "{said}");
}

/// What `vdectl complete` prints for a line, without the descriptions.
#[track_caller]
fn offered(lab: &Lab, line: &str) -> Vec<String> {
    let words = ["complete", "--"].into_iter().chain(line.split(' '));
    let answer = lab.vdectl(words).ok();
    let mut lines = answer.lines();
    assert_eq!(lines.next(), Some("words"), "{line}: {answer}");
    lines
        .map(|line| line.split('\t').next().unwrap().to_owned())
        .collect()
}

#[test]
fn values_are_completed_as_they_are_now() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "cable[seqpacket]");
    let _session = lab.vdens(["--name", "r1", &vnl, "sh"]).session();
    let file = lab.write(
        "net.toml",
        "[nodes.a]\n[nodes.b]\n[[links]]\nends = ['a:x', 'b:y']\n",
    );
    lab.vdectl(["lab", "up", &file]).ok();
    let switch = lab.vnl("switch", "sw");
    let plug = lab.vde_plug(["null://", &switch]).spawn();
    lab.wait_for("sw/ctl");
    let path = |name: &str| lab.path(name);
    for (line, words) in [
        ("vdectl exec ", &["r1", "net/a", "net/b"][..]),
        ("vdectl stop ", &["r1"]),
        ("vdectl graph ", &["r1", "net"]),
        ("vdectl lab down ", &["net"]),
        ("vdectl lab exec ", &["net/a", "net/b"]),
        ("vdectl lab up n", &["net.toml"]),
        ("vdectl lab test n", &["net", "net.toml"]),
        ("vdectl link down net/a", &["net/a:x"]),
        ("vdectl link set net/a:x rx.lo", &["rx.loss="]),
        ("vdens netem://delay=1ms/se", &["netem://delay=1ms/seed="]),
        ("vdectl capture r", &["r1:vde0"]),
        ("vdectl capture --lab ", &["net"]),
        ("vdectl plugin check vla", &["vlan"]),
        ("vdens pt", &["ptp://"]),
        ("vdens --multi no vh", &["vhost-user://"]),
        ("vde_plug null:// nu", &["null://"]),
        (
            "vdens-tap s",
            &["seqpacket://", "stream://", "switch://", "sw/"],
        ),
        ("vdens netem://delay=9ms{vl", &["netem://delay=9ms{vlan://"]),
        ("vdens ./s", &["./sw/"]),
        (
            &format!("vdens vlan://5{{{}", lab.vnl("ptp", "ca")),
            &[&format!("vlan://5{{{}", lab.vnl("ptp", "cable"))],
        ),
        (
            &format!("vdens vde://{}", path("s")),
            &[&format!("vde://{}", path("sw/"))],
        ),
        ("vdens --config net", &["net.toml"]),
    ] {
        let mut found = offered(&lab, line);
        let mut wanted: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted, "{line}");
    }
    let answer = lab
        .vdectl(["complete", "--", "vdens", "no", "sh", "-c"])
        .ok();
    assert_eq!(answer, "command 2\n");
    let processes = offered(&lab, "vdectl forward list --of ");
    assert!(processes.contains(&plug.pid().to_string()), "{processes:?}");
    // Completion says nothing, whatever is wrong.
    lab.sh("mkdir -p ~/.config/vdens; echo '[nothing' >~/.config/vdens/vdens.toml")
        .ok();
    assert_eq!(offered(&lab, "vdens pt"), ["ptp://"]);
    lab.vdectl(["lab", "down"])
        .env("XDG_CONFIG_HOME", "/nowhere")
        .ok();
}

/// Tries completion in a shell that runs `setup` first: of a subcommand, a session, a command in
/// it, and a path in a VNL.
fn in_shell(shell: &str, setup: &str) {
    let lab = Lab::new();
    let share = share_for(&lab);
    let tell = lab.bin().join("tell-where");
    fs::write(&tell, "#!/bin/sh\necho \"at $VDENS on $(hostname)\"\n").unwrap();
    fs::set_permissions(&tell, fs::Permissions::from_mode(0o755)).unwrap();
    let vnl = lab.vnl("ptp", "cable[seqpacket]");
    let session = lab
        .vdens(["--name", "r1", "-H", "inner", &vnl, "sh"])
        .session();
    // Without it, fish reads all manual pages of the machine.
    lab.sh("mkdir -p ~/.local/share/fish/generated_completions")
        .ok();
    let terminal = lab.tmux();
    let dirs = format!("XDG_DATA_DIRS={share}:/usr/share");
    terminal.type_line(&format!("{dirs} SHARE={share} TERM=xterm {shell}"));
    terminal.type_line(setup);
    terminal.type_line("echo ready'!'");
    terminal.wait_for("ready!");
    let type_keys = |keys: &[&str]| {
        for key in keys {
            match *key {
                "Tab" | "Enter" => terminal.press(key),
                text => terminal.type_text(text),
            }
        }
    };
    type_keys(&["vdectl sta", "Tab", "--js", "Tab", "Enter"]);
    terminal.wait_for("\"program\": \"vdens\"");
    type_keys(&["vdectl exec r", "Tab", "tell-w", "Tab", "Enter"]);
    terminal.wait_for("on inner");
    type_keys(&["vdens nul", "Tab", " tell-w", "Tab", "Enter"]);
    terminal.wait_for("at vde0=null:// on");
    let start = format!("vdens {}", lab.vnl("ptp", "cab"));
    type_keys(&[&start, "Tab", " tell-w", "Tab", "Enter"]);
    terminal.wait_for(&format!("at vde0={} on", lab.vnl("ptp", "cable")));
    // In quotes, whose end bash types too.
    type_keys(&["vdens 'netem://delay=1ms{nul", "Tab"]);
    terminal.wait_for("{null://");
    drop(terminal);
    drop(session);
    // fish leaves it.
    lab.sh("rm -f \"$XDG_RUNTIME_DIR\"/fish_*").ok();
}

#[test]
fn bash_completes() {
    need!("tmux", "bash", "/usr/share/bash-completion/bash_completion");
    in_shell(
        "bash --norc --noprofile -i",
        ". /usr/share/bash-completion/bash_completion",
    );
}

#[test]
fn zsh_completes() {
    need!("tmux", "zsh");
    let setup = "fpath=($SHARE/zsh/site-functions $fpath); autoload -U compinit; compinit -u -D";
    in_shell("zsh -f -i", setup);
}

#[test]
fn fish_completes() {
    need!("tmux", "fish");
    in_shell("fish --private", "set fish_greeting");
}
