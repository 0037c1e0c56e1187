//! The documentation says what is true, and the commands in it work.
//!
//! Theory of operation. README.md and the pages in docs/ are read as text; what they state about
//! the products is compared with what the products say of themselves: `--help`, the keys in the
//! configuration's and the plugins' own error messages. Fenced blocks are treated by their
//! language:
//!
//! - `sh` is run as a script by the ordinary user, with `set -e`, in a fresh lab: `$HOME` and the
//!   working directory are empty, the programs are on `$PATH`. It must succeed and leave nothing
//!   behind. What it left running in the background is ended first, as the reader would end it.
//! - `console` cannot be run here; [`NOT_RUN`] has each of them, and why.
//! - `text` is output or a picture.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use vdens_tests::{Lab, PROGRAMS, lacks, need, skip};

/// The blocks that are not run: page, first line, reason.
const NOT_RUN: &[(&str, &str, &str)] = &[
    (
        "docs/performance.md",
        "$ tests/bench/run               #",
        "takes an hour; the_benchmark_runs measures a little",
    ),
    (
        "docs/performance.md",
        "$ tests/bench/run --only",
        "builds the workspace; the_benchmark_runs measures a little",
    ),
    (
        "docs/performance.md",
        "$ tests/bench/run --against",
        "needs an older build; the_benchmark_compares_two_builds compares one with itself",
    ),
    (
        "docs/performance.md",
        "$ tests/bench/run --from",
        "builds the workspace; the_performance_pages_show_the_results_file runs the same",
    ),
    (
        "docs/reliability.md",
        "$ tests/fuzz/run -runs",
        "takes minutes and builds the workspace; a_little_fuzzing does it for seconds",
    ),
    (
        "docs/reliability.md",
        "$ tests/run fault_matrix::",
        "is part of what the tests run",
    ),
    (
        "docs/reliability.md",
        "# target/release/vdens-soak",
        "takes an hour; a_little_soaking takes less than a minute",
    ),
    (
        "README.md",
        "$ vdens --addr 10.0.0.1/24 ptp:///tmp/cable",
        "needs a disk image; vdens_tap.rs has a virtual machine",
    ),
    (
        "README.md",
        "$ vdens --auto nat://",
        "needs the Internet; nat.rs has one of its own",
    ),
    (
        "README.md",
        "$ vde_plug -d nat://",
        "needs the Internet; nat.rs has one of its own",
    ),
    (
        "docs/machines.md",
        "$ vdens ptp:///tmp/cable",
        "needs a disk image; vdens_tap.rs has a virtual machine",
    ),
    (
        "docs/machines.md",
        "$ vdens --tap",
        "Debian has neither program; vdens_tap.rs has QEMU in their place",
    ),
    (
        "docs/machines.md",
        "$ vdens --addr 10.0.0.1/24 'udp://",
        "Debian has no VirtualBox; vm.rs has QEMU's tunnel, which is the same",
    ),
    (
        "docs/machines.md",
        "$ qemu-system-x86_64",
        "needs a disk image; vm.rs has a virtual machine",
    ),
    (
        "docs/schemes/nat.md",
        "$ vdens --auto nat://",
        "needs the Internet; nat.rs has one of its own",
    ),
    (
        "docs/schemes/nat.md",
        "$ vde_plug -d nat://",
        "needs the Internet; nat.rs has one of its own",
    ),
    (
        "docs/schemes/nat.md",
        "$ vdectl forward add",
        "needs a gateway; nat_services.rs has one",
    ),
    (
        "docs/capture.md",
        "$ vdectl capture r1:vde0",
        "needs Wireshark's window; capture.rs pipes into tshark",
    ),
    (
        "docs/schemes/libvdeplug.md",
        "$ vdens --addr 10.0.2.15/24",
        "as in README.md; libvdeplug.rs",
    ),
    (
        "docs/libvdeplug.md",
        "$ LD_LIBRARY_PATH=$PWD/lib qemu",
        "needs a disk image; libvdeplug_so.rs has a virtual machine",
    ),
    (
        "docs/install.md",
        "$ host/packaging/deb",
        "builds a release and changes the machine; packages.rs installs one in a tree of Debian's",
    ),
    (
        "docs/install.md",
        "$ sudo apt install",
        "as above; packages.rs",
    ),
    (
        "docs/install.md",
        "$ cargo build",
        "builds a release and changes the machine; packages.rs installs elsewhere",
    ),
    (
        "docs/install.md",
        "$ sudo /usr/lib/vdens/apparmor",
        "needs root and AppArmor 4.0; packages.rs parses the profile",
    ),
    (
        "docs/install.md",
        "$ systemctl --user",
        "needs a service manager; packages.rs has one",
    ),
    (
        "docs/install.md",
        "$ cargo deny",
        "needs cargo-deny and the network; packages.rs checks the licences",
    ),
    (
        "docs/libvdeplug.md",
        "$ export PKG_CONFIG_PATH",
        "needs a program; libvdeplug_so.rs compiles one",
    ),
    (
        "docs/graph.md",
        "$ vdectl top",
        "runs until a key is pressed; top.rs presses it",
    ),
    (
        "docs/commands.md",
        "# useradd --create-home",
        "makes an account and needs another machine; login.rs has its shell run the same",
    ),
    (
        "README.md",
        "# ip tuntap add",
        "needs root and changes the host's network; router.rs does it in a namespace",
    ),
    (
        "README.md",
        "$ vdectl plugin new",
        "needs Rust; plugin_authors.rs runs the same commands in the tutorial",
    ),
    (
        "docs/schemes/tap.md",
        "# ip tuntap add",
        "as in README.md; router.rs",
    ),
    (
        "docs/schemes/udp.md",
        "left$ vdens",
        "needs two machines; udp.rs",
    ),
    (
        "docs/schemes/udp.md",
        "$ vdens --addr",
        "needs a disk image; vm.rs has a virtual machine",
    ),
    (
        "docs/schemes/vhost-user.md",
        "$ v",
        "needs a virtual machine; vhost_user.rs",
    ),
    (
        "docs/schemes/vhost-user.md",
        "$ qemu-system-x86_64",
        "as above; vhost_user.rs",
    ),
    (
        "docs/schemes/stream.md",
        "$ vdens --addr",
        "needs a disk image; qemu_stream.rs has a virtual machine",
    ),
    (
        "docs/schemes/stream.md",
        "$ stream=stream,id=net0,server=on",
        "needs a disk image; qemu_stream.rs has a virtual machine",
    ),
    (
        "docs/schemes/stream.md",
        "$ passt -s",
        "passt leaves its terminal; qemu_stream.rs has it in a network of its own",
    ),
    (
        "docs/schemes/stream.md",
        "$ gvproxy",
        "Debian has no gvproxy",
    ),
    (
        "docs/schemes/dgram.md",
        "$ vdens --addr 10.0.0.1/24 'dgram:///tmp/ours",
        "needs a disk image; qemu_stream.rs has a virtual machine",
    ),
    (
        "docs/schemes/dgram.md",
        "$ vdens --addr 10.0.0.1/24 dgram:///tmp/net",
        "Debian has neither libkrun nor vfkit; the plugin's tests have such a peer",
    ),
    (
        "docs/schemes/cmd.md",
        "$ dpipe vde_plug",
        "needs three terminals; interop.rs runs the same",
    ),
    (
        "docs/troubleshooting.md",
        "$ vdens ptp:///tmp/cable",
        "needs a terminal; mistakes.rs has one",
    ),
    (
        "docs/schemes/vxlan.md",
        "left$ vdens",
        "needs two machines and root; vxlan.rs",
    ),
];

/// A page whose blocks are one story, told by a user who has Rust: plugin_authors.rs runs them.
pub(crate) const TUTORIAL: &str = "docs/plugin-author.md";

/// The tutorial in C, whose commands c_door.rs runs.
pub(crate) const C_TUTORIAL: &str = "docs/plugin-author-c.md";

/// What a page's blocks need beside what all do.
const NEEDS: &[(&str, &[&str])] = &[
    (
        "docs/schemes/libvdeplug.md",
        &["libvdeplug_slirp", "libvdeplug_agno"],
    ),
    ("docs/libvdeplug.md", &["vde_plug"]),
    ("docs/schemes/hub.md", &["tcpdump"]),
    (
        "docs/labs.md",
        &["newuidmap", "/usr/lib/frr/ospfd", "tcpdump"],
    ),
];

/// How wide `--help` is in docs/commands.md.
const COLUMNS: &str = "100";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(page: &str) -> String {
    fs::read_to_string(repository().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// The files in a directory whose names end in `end`, as paths from the top of the repository.
fn files(directory: &str, end: &str) -> Vec<String> {
    let entries = fs::read_dir(repository().join(directory))
        .into_iter()
        .flatten();
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut files: Vec<_> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.ends_with(end))
        .map(|name| format!("{directory}/{name}"))
        .collect();
    files.sort();
    files
}

/// All pages.
fn pages() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    pages.extend(files("docs", ".md"));
    pages.extend(files("docs/schemes", ".md"));
    pages
}

/// A fenced block.
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) text: String,
    line: usize,
}

pub(crate) fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (line, text) in read(page).lines().enumerate() {
        match (text.strip_prefix("```"), &mut open) {
            (Some(""), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => {
                let language = language.to_owned();
                let text = String::new();
                open = Some(Block {
                    language,
                    text,
                    line: line + 1,
                });
            }
            (Some(_), Some(_)) => panic!("{page}:{}: a fence within a block", line + 1),
            (None, Some(block)) => {
                block.text.push_str(text);
                block.text.push('\n');
            }
            (None, None) => assert!(!text.contains("```"), "{page}:{}: a fence", line + 1),
        }
    }
    assert!(open.is_none(), "{page}: a block has no end");
    blocks
}

/// The part of a page below a heading, up to the next one of the same level.
fn section<'a>(text: &'a str, heading: &str) -> Option<&'a str> {
    let level = heading.split(' ').next()?;
    let (_, below) = text.split_once(&format!("\n{heading}\n"))?;
    below.split(&format!("\n{level} ")).next()
}

/// The words in backticks in the first column of a table.
fn first_column(text: &str) -> BTreeSet<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split(" |").next());
    cells.flat_map(quoted).collect()
}

/// The words in backticks in a text.
fn quoted(text: &str) -> BTreeSet<String> {
    let words = text.split('`').skip(1).step_by(2);
    words.map(str::to_owned).collect()
}

#[test]
fn commands_in_the_pages_work() {
    need!("ip", "ping", "iptables", "pgrep");
    let mut number = 0;
    for page in pages() {
        let needs = NEEDS.iter().find(|(name, _)| *name == page);
        if let Some(reason) = needs.and_then(|(_, needs)| lacks(needs)) {
            skip(&format!("{page}: {reason}"));
            continue;
        }
        for block in blocks(&page) {
            let place = format!("{page}:{}", block.line);
            let is_excused = |(name, first_line, _): &(&str, &str, &str)| {
                *name == page && block.text.starts_with(first_line)
            };
            match &*block.language {
                "sh" if [TUTORIAL, C_TUTORIAL].contains(&&*page) => {}
                "sh" => {
                    run(&place, &block.text);
                    number += 1;
                }
                "console" if NOT_RUN.iter().any(is_excused) => {}
                "console" => panic!("{place}: why is this block not run?"),
                "text" => {}
                other => panic!("{place}: a block in '{other}'"),
            }
        }
    }
    assert!(number > 10, "only {number} blocks found");
}

/// Runs a block.
#[track_caller]
fn run(place: &str, block: &str) {
    let lab = Lab::new();
    let end = "trap 'kill $(pgrep -P $$) 2>/dev/null || :; wait' EXIT";
    let output = lab.sh(&format!("{end}\n{block}")).run();
    assert!(output.status.success(), "{place}: {output:#?}");
    let program = |line: &str| line.split_once(": ").map(|(program, _)| program.to_owned());
    let programs = output.stderr.lines().filter_map(program);
    let mut refused = programs.filter(|program| PROGRAMS.contains(&&**program));
    assert!(refused.next().is_none(), "{place}: {output:#?}");
}

#[test]
fn every_block_that_is_not_run_is_there() {
    for (page, first_line, _) in NOT_RUN {
        let found = blocks(page)
            .iter()
            .any(|block| block.language == "console" && block.text.starts_with(first_line));
        assert!(found, "{page} has no block '{first_line}'");
    }
}

#[test]
fn the_benchmark_runs() {
    need!("root", "iperf3");
    let lab = Lab::new();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vdens-bench"))
        .args(["--rounds", "1", "--seconds", "1"])
        .args(["--only", "links/veth/tcp1", "--only", "links/ours-ptp/tcp1"])
        .args(["--only", "uplink/ours/requests"])
        .arg("--bin")
        .arg(lab.bin())
        .arg("--out")
        .arg(lab.dir())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:#?}");
    for file in ["performance.json", "performance-tables.md"] {
        assert!(fs::metadata(lab.dir().join(file)).unwrap().len() > 0);
        lab.expect(file);
    }
    lab.expect("performance.svg");
}

#[test]
fn the_benchmark_compares_two_builds() {
    need!("root");
    let lab = Lab::new();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vdens-bench"))
        .args(["--rounds", "1", "--seconds", "1"])
        .args(["--only", "links/ours-ptp/rtt-idle", "--only", "links/veth"])
        .arg("--bin")
        .arg(lab.bin())
        .arg("--against")
        .arg(lab.bin())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:#?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("links/ours-ptp: rtt-idle-p50"), "{stdout}");
    assert!(
        stdout.contains("Worse by more than the scatter:"),
        "{stdout}"
    );
    assert!(!stdout.contains("veth"), "only what is ours: {stdout}");
}

/// What the benchmark draws from the results in docs/ is what the pages show.
#[test]
fn the_performance_pages_show_the_results_file() {
    let lab = Lab::new();
    let page = "performance.md";
    lab.write(page, read("docs/performance.md"));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vdens-bench"))
        .arg("--from")
        .arg(repository().join("docs/performance.json"))
        .arg("--out")
        .arg(lab.dir())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:#?}");
    for file in [
        page,
        "performance.json",
        "performance-tables.md",
        "performance.svg",
        "performance-uplink.svg",
    ] {
        let drawn = fs::read_to_string(lab.dir().join(file)).unwrap();
        let is_same = drawn == read(&format!("docs/{file}"));
        assert!(
            is_same,
            "docs/{file}: run vdens-bench --from docs/performance.json --out docs"
        );
        lab.expect(file);
    }
}

#[test]
fn the_demo_works() {
    need!("ping");
    let lab = Lab::new();
    let demo = lab.write("demo", read("docs/demo"));
    let output = lab
        .command("bash", [demo])
        .env("VDENS_BIN", lab.bin())
        .run();
    assert!(output.status.success(), "{output:#?}");
    for (text, words) in [
        (&output.stdout, " 0% packet loss"),
        (&output.stdout, "10.0.0.1 answered"),
        (&output.stderr, "libvdens_ptp.so"),
    ] {
        assert!(text.contains(words), "no '{words}': {output:#?}");
    }
}

#[test]
fn the_command_reference_is_what_help_says() {
    let lab = Lab::new();
    let reference = read("docs/commands.md");
    for words in [
        "vdens",
        "vde_plug",
        "vde_switch",
        "vdens-tap",
        "vdectl",
        "vdectl plugin",
        "vdectl lab",
        "vdectl link",
        "vdectl switch",
        "vdectl capture",
    ] {
        let (program, subcommand) = words.split_once(' ').unwrap_or((words, "--help"));
        let help = lab
            .command(lab.bin().join(program), [subcommand, "--help"])
            .env("COLUMNS", COLUMNS)
            .ok();
        let lines: Vec<_> = help.lines().map(str::trim_end).collect();
        let block = format!("\n```text\n{}\n```\n", lines.join("\n"));
        assert!(
            reference.contains(&block),
            "docs/commands.md does not have what `COLUMNS={COLUMNS} {words} --help` says now:\n{block}"
        );
    }
}

#[test]
fn every_variable_is_in_the_command_reference() {
    let reference = read("docs/commands.md");
    let variables = first_column(section(&reference, "## Environment").unwrap());
    for name in [
        "VDE_RESOLVCONF",
        "VDE_RESOLVADDR",
        "VDENS_PLUGIN_PATH",
        "VDENS",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
    ] {
        assert!(variables.contains(name), "{name}: {variables:?}");
    }
}

/// What vdens says it would have expected in the place of an unknown key.
fn known_keys(lab: &Lab, configuration: &str) -> BTreeSet<String> {
    let file = lab.write("unknown.toml", configuration);
    let output = lab
        .vdens(["--config", &file, "no", "true"])
        .refused(&["no_such_key", "expected"]);
    let expected = output.stderr.split("expected").nth(1);
    quoted(expected.unwrap_or_default())
}

#[test]
fn every_configuration_key_is_documented() {
    let lab = Lab::new();
    let example = read("docs/vdens.toml");
    let page = read("docs/configuration.md");
    let mut expected = BTreeSet::new();
    let tables = known_keys(&lab, "no_such_key = 1\n");
    assert!(tables.contains("plugins"), "{tables:?}");
    for table in tables {
        let start = format!("\n[{table}]\n");
        let (_, keys_below) = example
            .split_once(&start)
            .unwrap_or_else(|| panic!("docs/vdens.toml has no [{table}]"));
        let keys_below = keys_below.split("\n[").next().unwrap();
        for key in known_keys(&lab, &format!("[{table}]\nno_such_key = 1\n")) {
            let assignment = format!("{key} = ");
            let shown = |line: &str| line.trim_start_matches('#').starts_with(&assignment);
            assert!(
                keys_below.lines().any(shown),
                "docs/vdens.toml has no {table}.{key}"
            );
            expected.insert(format!("{table}.{key}"));
        }
    }
    assert_eq!(first_column(&page), expected, "docs/configuration.md");
    let file = lab.write("vdens.toml", example);
    lab.vdens(["--config", &file, "no", "true"]).ok();
}

/// The keys that a plugin says it takes.
fn plugin_keys(lab: &Lab, scheme: &str) -> BTreeSet<String> {
    let vnl = match scheme {
        // Everything is the command, or whatever the C plugin takes.
        "cmd" | "libvdeplug" => return BTreeSet::new(),
        "udp" | "vlan" | "vxlan" => format!("{scheme}://x/no_such_key=1"),
        "netem" => format!("{scheme}://no_such_key=1"),
        _ => format!("{scheme}://x[no_such_key=1]"),
    };
    let output = lab.vdens([&vnl, "true"]).refused(&["no_such_key"]);
    match output.stderr.trim_end().split_once("valid keys: ") {
        Some((_, keys)) => {
            // Of netem's directions each has all keys.
            let keys = keys.split(", ").filter(|key| !key.contains('.'));
            keys.map(str::to_owned).collect()
        }
        None => {
            let has_none = ["takes no keys", "takes no argument"];
            let says_so = has_none.iter().any(|words| output.stderr.contains(words));
            assert!(says_so, "{scheme}: {output:?}");
            BTreeSet::new()
        }
    }
}

#[test]
fn every_scheme_has_a_page_with_its_keys() {
    let lab = Lab::new();
    let plugins = fs::read_dir(lab.bin()).unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let scheme = name.strip_prefix("libvdens_")?.strip_suffix(".so")?;
        Some(scheme.replace('_', "-"))
    });
    // The plugins in tests/plugins have no page.
    let schemes: BTreeSet<_> = plugins.filter(|s| !s.starts_with("test-")).collect();
    let documented: BTreeSet<_> = files("docs/schemes", ".md")
        .iter()
        .map(|page| Path::new(page).file_stem().unwrap().to_str().unwrap())
        .map(str::to_owned)
        .collect();
    assert_eq!(documented, schemes, "docs/schemes");
    let (readme, commands) = (read("README.md"), read("docs/commands.md"));
    for scheme in schemes {
        let page = read(&format!("docs/schemes/{scheme}.md"));
        let keys = section(&page, "## Keys").unwrap_or_else(|| panic!("{scheme}.md has no Keys"));
        assert_eq!(first_column(keys), plugin_keys(&lab, &scheme), "{scheme}");
        let link = format!("schemes/{scheme}.md");
        assert!(readme.contains(&link), "README.md does not name {link}");
        assert!(commands.contains(&link), "commands.md does not name {link}");
    }
}

/// Rows whose words are the kernel's or a library's, or of which too few stand together in the
/// source.
const OTHER_MESSAGES: &[&str] = &[
    "cannot open /dev/net/tun",
    "cannot write … to /proc/self/…",
    "FILE:LINE:COLUMN: unknown field `X`",
    "libvdeplug cannot open VNL: …",
    "no '->' in …",
    "the VNL file PATH is refused, the link PATH is refused",
    "the switch DIR refused port N",
    "the plugin FILE is refused, whatever for",
    "the vdestream ended",
];

/// All source of the programs and plugins, with string literals on one line.
fn source() -> String {
    let mut text = String::new();
    let mut directories: Vec<_> = ["host/src", "plugins", "plugin-api"]
        .map(|directory| repository().join(directory))
        .into();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                text += &fs::read_to_string(path).unwrap_or_default();
            }
        }
    }
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let text = lines.join("\n").replace("\\\n", "");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Three words that stand together in a message of a page stand so in the source.
#[test]
fn messages_in_the_pages_are_the_programs() {
    let source = source();
    let mut number = 0;
    for page in pages() {
        let text = read(&page);
        let Some((_, table)) = text.split_once("| Message | Remedy |\n") else {
            continue;
        };
        let rows = table.lines().skip(1).map_while(|l| l.strip_prefix("| "));
        for message in rows.filter_map(|row| row.split(" |").next()) {
            let own = message.replace("cannot ", "");
            let runs = own.split(|c: char| !(c.is_ascii_alphabetic() || " -".contains(c)));
            let found = runs
                .map(|run| run.split_whitespace().collect::<Vec<_>>())
                .any(|words| {
                    let mut together = words.windows(words.len().clamp(1, 3));
                    together.any(|words| {
                        let words = words.join(" ");
                        words.len() >= 6 && source.contains(&words)
                    })
                });
            let is_other = OTHER_MESSAGES
                .iter()
                .any(|other| message.starts_with(other));
            assert!(found || is_other, "{page}: '{message}'");
            number += 1;
        }
    }
    assert!(number > 80, "only {number} messages found");
}

/// The code that the tutorial shows for a socket of datagrams is that of a plugin of the tests.
#[test]
fn the_tutorial_shows_code_that_is_built() {
    let page = read(TUTORIAL);
    let part = section(&page, "## The panel and super-frames").unwrap();
    let code = read("tests/plugins/packets/src/lib.rs");
    let lines: Vec<_> = part.lines().filter(|l| l.starts_with("    ")).collect();
    assert!(!lines.is_empty());
    for line in lines {
        assert!(code.contains(line), "{line}");
    }
}

/// What GitHub makes of a heading for links to it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let directory = Path::new(&page).parent().unwrap().to_owned();
        let text = read(&page);
        let targets = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.starts_with("https://")) {
            let (file, part) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => PathBuf::from(&page),
                file => directory.join(file),
            };
            assert!(repository().join(&path).exists(), "{page}: {target}");
            let there = read(path.to_str().unwrap());
            let headings = there.lines().filter(|line| line.starts_with('#'));
            let found = part.is_empty() || headings.map(anchor).any(|anchor| anchor == part);
            assert!(found, "{page}: {target}");
        }
    }
}

/// The directories at the top of the repository, as a page names them.
const TOP: &[&str] = &["docs/", "host/", "plugin-api/", "plugins/", "tests/"];

#[test]
fn paths_named_in_the_pages_exist() {
    let mut number = 0;
    for page in pages() {
        let text = read(&page);
        let is_outside = |c: char| c.is_whitespace() || "`'\"(),;:#".contains(c);
        for word in text.split(is_outside) {
            // An asterisk stands for several files of one directory.
            let path = word.trim_end_matches(['.', '/']).split('*').next().unwrap();
            if TOP.iter().any(|top| path.starts_with(top)) {
                assert!(repository().join(path).exists(), "{page}: {word}");
                number += 1;
            }
        }
    }
    assert!(number > 10, "only {number} paths found");
}

#[test]
fn the_architecture_page_visits_each_part_of_the_host() {
    let page = read("docs/architecture.md");
    let source = repository().join("host/src");
    let mut number = 0;
    for entry in fs::read_dir(source).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            let name = entry.file_name().into_string().unwrap();
            assert!(page.contains(&format!("`host/src/{name}/")), "{name}");
            number += 1;
        }
    }
    assert!(number > 5, "only {number} directories found");
}

/// How many columns a line may have. The row of a table may have more.
const WIDTH: usize = 100;

#[test]
fn lines_fit_a_terminal() {
    for page in pages() {
        for (number, line) in read(&page).lines().enumerate() {
            let is_narrow = line.starts_with('|') || line.chars().count() <= WIDTH;
            assert!(is_narrow, "{page}:{}: wider than {WIDTH}", number + 1);
        }
    }
}

/// Options and subcommands of ours, as the pages name them in passing, are those of the programs.
#[test]
fn command_lines_within_a_sentence_are_ones_that_the_programs_know() {
    let lab = Lab::new();
    let mut number = 0;
    for page in pages() {
        let text = read(&page);
        let prose = text
            .split("\n```")
            .step_by(2)
            .collect::<Vec<_>>()
            .join("\n");
        for line in quoted(&prose) {
            let mut words = line.split_whitespace().peekable();
            let Some(program @ ("vdens" | "vde_plug" | "vde_switch" | "vdens-tap" | "vdectl")) =
                words.next()
            else {
                continue;
            };
            let is_task = |word: &str| word.chars().all(|c| c.is_ascii_lowercase());
            let mut help = Vec::new();
            while program == "vdectl" && words.peek().is_some_and(|word| is_task(word)) {
                help.extend(words.next());
            }
            help.push("--help");
            let help = lab.command(lab.bin().join(program), help).ok();
            for option in words.filter(|word| word.starts_with("--") && word.len() > 2) {
                let option = option.split('=').next().unwrap();
                assert!(help.contains(option), "{page}: {line}");
            }
            number += 1;
        }
    }
    assert!(number > 10, "only {number} command lines found");
}

#[test]
fn the_glossary_defines_each_term_once() {
    let page = read("docs/glossary.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| **"));
    let terms: Vec<&str> = rows.filter_map(|row| row.split("**").next()).collect();
    for term in [
        "frame",
        "super-frame",
        "offload",
        "VNL",
        "scheme",
        "link",
        "interface",
        "carrier",
        "far end",
        "peer",
        "session",
        "supervisor",
        "worker",
        "panel",
        "member",
        "port",
        "bridge",
    ] {
        let found = terms.iter().filter(|name| **name == term).count();
        assert_eq!(found, 1, "{term}: {terms:?}");
    }
    let distinct: BTreeSet<_> = terms.iter().collect();
    assert_eq!(distinct.len(), terms.len(), "{terms:?}");
    assert!(read("README.md").contains("(docs/glossary.md)"));
}

/// Each test that docs/security.md names is there: in the last column of a table, `module::test`
/// of this directory, or the names of unit tests behind `unit: crate`.
#[test]
fn the_security_page_names_tests_that_exist() {
    let page = read("docs/security.md");
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());
    let (mut tests, mut missing) = (0, Vec::new());
    for cell in cells {
        let unit = cell.strip_prefix("unit: ");
        let unit = unit.and_then(|unit| unit.split(' ').next());
        for word in quoted(cell) {
            tests += 1;
            let (sources, name) = match (unit, word.split_once("::")) {
                (Some("vdens"), None) => (sources("host/src"), &*word),
                (Some("vdens-sandbox"), None) => (sources("host/sandbox/src"), &*word),
                (Some("vdens-plugin-kit"), None) => (sources("plugin-api/kit/src"), &*word),
                (Some("vdens-vhost-device"), None) => (sources("plugins/vhost-device/src"), &*word),
                (None, Some((module, name))) => {
                    let file = repository().join(format!("tests/tests/{module}.rs"));
                    (fs::read_to_string(file).unwrap_or_default(), name)
                }
                _ => panic!("neither a test nor a unit test of a crate: {word} in '{cell}'"),
            };
            if !sources.contains(&format!("fn {name}()")) {
                missing.push(word);
            }
        }
    }
    assert!(tests > 50 && missing.is_empty(), "{tests}: {missing:?}");
}

/// Directories whose comments fit into [`WIDTH`] columns.
const NARROW: [&str; 4] = ["host", "plugin-api", "plugins", "tests"];

#[test]
fn comments_fit_a_terminal() {
    for directory in NARROW {
        for path in source_files(directory) {
            // A frozen copy stays as it is.
            let is_frozen = path
                .components()
                .any(|part| part.as_os_str() == "frozen-v1");
            let text = fs::read_to_string(&path).unwrap();
            for (line, number) in text.lines().zip(1..).filter(|_| !is_frozen) {
                let is_comment = line.trim_start().starts_with("//");
                let width = line.chars().count();
                let place = format!("{}:{number}", path.display());
                assert!(!is_comment || width <= WIDTH, "{place}: {width} columns");
            }
        }
    }
}

/// All source files below a directory.
fn source_files(directory: &str) -> Vec<PathBuf> {
    let below = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let mut files = Vec::new();
    let mut rest = vec![repository().join(directory)];
    while let Some(path) = rest.pop() {
        rest.extend(below(&path).map(|entry| entry.path()));
        if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
    files
}

/// The text of all source files below a directory.
fn sources(directory: &str) -> String {
    let files = source_files(directory).into_iter();
    let texts = files.map(|path| fs::read_to_string(path).unwrap_or_default());
    texts.collect()
}
