//! The door c1 of ABI 1: plugins in C and C++, and stock plugins that are used through it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, children, need, wait_until};

use crate::docs;
use crate::plugin_authors::{without_v1, works};
use crate::status::{link, status};

/// Where the door's header and examples are.
fn source(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-api/c");
    root.join(name).canonicalize().unwrap()
}

/// Compiles a plugin as a careful author does, into the lab's directory for plugins.
fn compile(lab: &Lab, compiler: &str, file: &Path, header: &Path, options: &[&str]) -> PathBuf {
    let text = fs::read_to_string(file).unwrap();
    let copy = lab.write(&file.file_name().unwrap().to_string_lossy(), text);
    let scheme = file.file_stem().unwrap().to_string_lossy().into_owned();
    let plugin = lab.drop_in().join(format!("libvdens_{scheme}.so"));
    let header = lab.write("vdens-plugin.h", fs::read_to_string(header).unwrap());
    let include = format!("-I{}", Path::new(&header).parent().unwrap().display());
    let standard = match compiler.ends_with("++") {
        true => "-std=c++17",
        false => "-std=c11",
    };
    lab.command(compiler, [standard, "-Wall", "-Wextra", "-Werror"])
        .args(["-O2", "-g", "-fPIC", "-shared", &include])
        .args(options)
        .args(["-o".as_ref(), plugin.as_os_str(), copy.as_ref()])
        .ok();
    plugin
}

/// The template in C, in the lab's directory for plugins.
pub(crate) fn compile_template(lab: &Lab) {
    compile(
        lab,
        "gcc",
        &source("template/template.c"),
        &source(HEADER),
        &[],
    );
}

/// The example in C++, `count`, in the lab's directory for plugins.
pub(crate) fn compile_example(lab: &Lab) {
    let file = source("examples/count.cpp");
    compile(lab, "g++", &file, &source(HEADER), &[]);
}

/// The plugin `frozen` on the header as it was frozen, in the lab's directory for plugins.
pub(crate) fn compile_frozen(lab: &Lab) {
    let header = frozen("vdens-plugin.h");
    compile(lab, "gcc", &frozen("frozen.c"), &header, &[]);
}

/// Compiles a plugin of this source for the scheme `x`.
fn x(lab: &Lab, source: &str) {
    let file = lab.write("x.c", source);
    compile(
        lab,
        "gcc",
        Path::new(&file),
        &self::source("include/vdens-plugin.h"),
        &[],
    );
}

const HEADER: &str = "include/vdens-plugin.h";

/// The header has the types of the crate `vdens-plugin-c`, member by member.
#[test]
fn the_header_and_the_crate_are_laid_out_alike() {
    need!("gcc", "g++");
    let mut text = String::from("#include \"vdens-plugin.h\"\n#ifndef __cplusplus\n");
    text += "#define static_assert _Static_assert\n#endif\n";
    macro_rules! compare {
        ($text:ident: $($c:ident = $rust:ident { $($field:ident),* })+) => {$(
            let name = stringify!($c);
            let size = size_of::<vdens_plugin_c::$rust>();
            writeln!($text, "static_assert(sizeof(struct {name}) == {size}, \"{name}\");").unwrap();
            // All of them: else the pattern is an error.
            let all = |it: vdens_plugin_c::$rust| {
                let vdens_plugin_c::$rust { $($field: _),* } = it;
            };
            let _ = all;
            $(
                let field = stringify!($field);
                let at = std::mem::offset_of!(vdens_plugin_c::$rust, $field);
                writeln!(
                    $text,
                    "static_assert(offsetof(struct {name}, {field}) == {at}, \"{name}.{field}\");"
                )
                .unwrap();
            )*
        )+};
    }
    compare! {
        text:
        vdens_error = Error { code, errnum, message, hint }
        vdens_slot = Slot { offset, len }
        vdens_batch = Batch { arena, arena_len, used, slots, slot_capacity, len, dropped }
        vdens_fds = Fds { recv, send }
        vdens_state = State { flags, offloads }
        vdens_link_calls = LinkCalls {
            struct_size, fds, recv, send, other_side, state, status, close
        }
        vdens_link = Link { link, calls }
        vdens_port = Port { mtu, panel, place, interface }
        vdens_hub = Hub { tap, panel, place, name }
        vdens_host_calls = HostCalls {
            struct_size, log, log_level, open, port, plug, attach, hub, keep, kept
        }
        vdens_host = Host { services, calls }
        vdens_request = Request { struct_size, vnl, description, group, port, mode, host }
        vdens_plugin = Plugin { struct_size, scheme, description, version, capabilities, open }
    }
    use vdens_plugin_kit::{Capabilities, ErrorKind, Offloads};
    for (name, value) in [
        ("ABI", u64::from(vdens_plugin_c::VERSION)),
        ("BATCH_FRAMES", vdens_plugin_kit::BATCH_FRAMES as u64),
        ("VNET_HEADER", vdens_plugin_kit::VNET_HEADER_LEN as u64),
        ("MIN_FRAME", vdens_plugin_kit::MIN_FRAME as u64),
        ("MAX_FRAME", vdens_plugin_kit::MAX_FRAME as u64),
        ("LEGACY_FRAME", vdens_plugin_kit::MAX_LEGACY_FRAME as u64),
        ("ERROR_OTHER", ErrorKind::Other as u64),
        ("ERROR_USAGE", ErrorKind::Usage as u64),
        ("ERROR_NOT_FOUND", ErrorKind::NotFound as u64),
        ("ERROR_PERMISSION", ErrorKind::Permission as u64),
        ("ERROR_BUSY", ErrorKind::Busy as u64),
        ("ERROR_CLOSED", ErrorKind::Closed as u64),
        ("ERROR_UNSUPPORTED", ErrorKind::Unsupported as u64),
        ("ERROR_PROTOCOL", ErrorKind::Protocol as u64),
        ("ERROR_PANIC", ErrorKind::Panic as u64),
        ("LINK_CARRIER", vdens_plugin_c::link_flag::CARRIER.into()),
        ("LINK_SHARED", vdens_plugin_c::link_flag::SHARED.into()),
        ("LINK_PLUGGED", vdens_plugin_c::link_flag::PLUGGED.into()),
        (
            "LINK_WANTS_PANEL",
            vdens_plugin_c::link_flag::WANTS_PANEL.into(),
        ),
        ("OFFLOAD_CSUM", Offloads::CSUM.0.into()),
        ("OFFLOAD_TSO4", Offloads::TSO4.0.into()),
        ("OFFLOAD_TSO6", Offloads::TSO6.0.into()),
        ("OFFLOAD_TSO_ECN", Offloads::TSO_ECN.0.into()),
        ("OFFLOAD_USO4", Offloads::USO4.0.into()),
        ("OFFLOAD_USO6", Offloads::USO6.0.into()),
        ("CAP_NESTS", Capabilities::NESTS.0),
        ("CAP_SUPER_FRAMES", Capabilities::SUPER_FRAMES.0),
        ("CAP_PANEL", Capabilities::PANEL.0),
        ("CAP_SHARED", Capabilities::SHARED.0),
        ("CAP_ONE_END", Capabilities::ONE_END.0),
        ("CAP_STANDS_IN", Capabilities::STANDS_IN.0),
    ] {
        writeln!(text, "static_assert(VDENS_{name} == {value}, \"{name}\");").unwrap();
    }
    // What is younger than the frozen header.
    let mut newer = text.clone();
    compare! {
        newer:
        vdens_port_vlans = PortVlans { untagged, tagged }
        vdens_panel_calls = PanelCalls { struct_size, vlan_bridge, set_vlans }
    }
    use vdens_plugin_c::vlan_bridge;
    for (name, value) in [
        ("CAP_CONFINED", Capabilities::CONFINED.0),
        ("BRIDGE_FILTERING", vlan_bridge::FILTERING.into()),
        ("BRIDGE_UNTAGGED", vlan_bridge::UNTAGGED.into()),
    ] {
        writeln!(newer, "static_assert(VDENS_{name} == {value}, \"{name}\");").unwrap();
    }
    let headers = [(source(HEADER), newer), (frozen("vdens-plugin.h"), text)];
    for (header, text) in headers {
        let lab = Lab::new();
        lab.write("vdens-plugin.h", fs::read_to_string(header).unwrap());
        let file = lab.write("layout.c", &text);
        let checked = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only"];
        lab.command("gcc", ["-std=c11", "-pedantic", "-Wconversion"])
            .args(checked)
            .args([&file])
            .ok();
        lab.command("g++", ["-std=c++11", "-x", "c++"])
            .args(checked)
            .args([&file])
            .ok();
    }
}

/// What was frozen.
fn frozen(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("frozen-c1")
        .join(name)
}

/// The tutorial's commands, one by one, as a user types them in an empty directory.
#[test]
fn the_tutorial_leads_to_a_ping() {
    need!("cc", "ping");
    let lab = Lab::new();
    lab.expect("mycable");
    let blocks = docs::blocks(docs::C_TUTORIAL);
    let blocks = blocks.iter().filter(|block| block.language == "sh");
    let script: Vec<&str> = blocks.map(|block| &*block.text).collect();
    assert!(script.len() >= 5, "{script:?}");
    let end = "trap 'kill $(pgrep -P $$) 2>/dev/null || :; wait' EXIT";
    let script = lab.sh(&format!("{end}\n{}", script.join("\n")));
    let output = script.spawn().wait(Duration::from_secs(300));
    assert!(output.status.success(), "{output:#?}");
    let said: Vec<_> = output.stdout.split_whitespace().collect();
    let said = said.join(" ");
    for words in [
        "mycable has a transport for mycable://",
        "ok ABI version 1 by door c1",
        "16 ok, 0 failed, 1 skipped",
        "mycable 0.1.0 ABI 1 (c1) a cable of UDP datagrams",
        "bytes from 10.0.0.1",
    ] {
        assert!(said.contains(words), "{words}: {output:#?}");
    }
    for name in ["mycable.c", "README.md"] {
        let text = fs::read_to_string(lab.dir().join("mycable").join(name)).unwrap();
        assert!(
            text.contains("mycable://") && !text.contains("template"),
            "{name}"
        );
    }
    lab.vdectl(["plugin", "new", "--language", "c", "--api", "1.0", "x"])
        .refused(&["--language"]);
}

#[test]
fn a_cable_in_c_works_with_either_compiler() {
    need!("gcc", "clang", "ping");
    let code = fs::read_to_string(source("template/template.c")).unwrap();
    assert!(code.lines().count() <= 150);
    for compiler in ["gcc", "clang"] {
        let lab = Lab::new();
        compile(
            &lab,
            compiler,
            &source("template/template.c"),
            &source(HEADER),
            &[],
        );
        let listing = lab.vdectl(["plugin", "list"]).ok();
        let listed = "template     0.1.0  ABI 1 (c1)  a cable of UDP datagrams";
        assert!(listing.contains(listed), "{listing}");
        works(&lab, "", "template", "template://31340");
        lab.vdens(["template://x", "true"])
            .refused(&["'x' is no port; write template://PORT, from 1 to 65534"]);
        lab.vdens(["template://65535", "true"])
            .refused(&["is no port"]);
    }
}

/// The conformance checks find no fault in memory that the compilers' sanitizers can see.
#[test]
fn the_examples_are_clean_under_sanitizers() {
    need!("gcc", "g++", "clang");
    for (compiler, runtime, options) in [
        ("gcc", "libasan.so", &[][..]),
        ("clang", "libclang_rt.asan-x86_64.so", &["-shared-libasan"]),
    ] {
        let lab = Lab::new();
        let runtime = lab
            .command(compiler, [&format!("-print-file-name={runtime}")])
            .ok();
        if !Path::new(runtime.trim()).is_absolute() {
            vdens_tests::skip(&format!("{compiler} has no runtime for its sanitizers"));
            continue;
        }
        let checked = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
        let options = [&checked, options].concat();
        let header = source(HEADER);
        compile(
            &lab,
            compiler,
            &source("template/template.c"),
            &header,
            &options,
        );
        let plus = compiler.replace("gcc", "g") + "++";
        compile(
            &lab,
            &plus,
            &source("examples/count.cpp"),
            &header,
            &options,
        );
        let count = format!("count://{{{}}}", lab.vnl("ptp", "p"));
        // The sanitizer looks for the thrower of exceptions when the program starts.
        let exceptions = lab.command(&plus, ["-print-file-name=libstdc++.so.6"]).ok();
        let preload = format!("{} {}", runtime.trim(), exceptions.trim());
        for (scheme, vnl) in [("template", "template://31350"), ("count", &*count)] {
            let check = lab.vdectl(["plugin", "check", scheme, vnl]);
            let check = check
                .env("LD_PRELOAD", &preload)
                .env("ASAN_OPTIONS", "abort_on_error=1");
            let output = check.spawn().wait(Duration::from_secs(240));
            assert_eq!(output.code(), Some(0), "{compiler}: {output:#?}");
            assert!(!output.stderr.contains("runtime error"), "{output:#?}");
        }
    }
}

/// Another VNL, the log, the port, a report, and a descriptor that outlives the process.
#[test]
fn an_example_in_c_plus_plus_uses_its_host() {
    need!("g++", "ping");
    let lab = Lab::new();
    compile_example(&lab);
    let vnl = format!("count://{{{}}}", lab.vnl("ptp", "p"));
    works(&lab, "", "count", &vnl);
    let session = |address| lab.vdens(["-v", "--addr", address, &vnl, "sh"]).session();
    let (first, second) = (session("10.0.0.1/24"), session("10.0.0.2/24"));
    second.ping("10.0.0.1");
    let counted = || {
        let report = status(&lab);
        let extra = link(&report, first.proc().pid().cast_unsigned(), 0)["extra"].clone();
        let count = |name: &str| extra[name].as_str().and_then(|n| n.parse::<u64>().ok());
        count("received").zip(count("sent"))
    };
    wait_until("frames are counted", PATIENCE, || {
        counted().is_some_and(|(received, sent)| received > 0 && sent > 0)
    });
    assert!(first.proc().stderr().contains("counts the frames of vde0"));
    // The next worker goes on.
    kill_workers(first.proc().pid());
    wait_until("another worker", PATIENCE, || {
        first
            .proc()
            .stderr()
            .contains("counts the frames of vde0, goes on")
    });
    lab.vdens(["count://", "true"])
        .refused(&["no VNL in braces", "write count://{VNL}"]);
    lab.vdens(["count://{nosuch://}", "true"])
        .refused(&["libvdens_nosuch.so"]);
}

/// Kills the workers of a session, whose command is a shell.
fn kill_workers(supervisor: i32) {
    for child in children(supervisor) {
        let command = fs::read(format!("/proc/{child}/cmdline")).unwrap();
        if !command.starts_with(b"sh\0") {
            kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
        }
    }
}

/// A lab whose stock plugins have the door c1 alone.
fn lab_of_c_plugins() -> Lab {
    let lab = Lab::new();
    let files = fs::read_dir(lab.bin()).unwrap();
    for file in files.map(|file| file.unwrap().path()) {
        let name = file.file_name().unwrap().to_string_lossy();
        if name.starts_with("libvdens_") && name.ends_with(".so") {
            without_v1(&file);
        }
    }
    let listing = lab.vdectl(["plugin", "list", "--json"]).ok();
    assert!(
        listing.contains("\"c1\"") && !listing.contains("\"v1\""),
        "{listing}"
    );
    lab
}

/// A cable and a switch through the door, in the kernel and, from one to the other, in user space.
#[test]
fn stock_plugins_work_through_the_door() {
    need!("ping");
    let lab = lab_of_c_plugins();
    let plugs = |session: &vdens_tests::Session<'_>| {
        wait_until("the kernel carries the frames", PATIENCE, || {
            let stderr = session.proc().stderr();
            stderr.contains("frames go through the kernel")
        });
    };
    let start = |options: &[&str], vnl: &str| {
        let session = lab.vdens(["-v"]).args(options).args([vnl, "sh"]).session();
        session.ok(":");
        session
    };
    let cable = lab.vnl("ptp", "p");
    for options in [&[][..], &["--no-panel"]] {
        let first = start(&[options, &["--addr", "10.0.0.1/24"]].concat(), &cable);
        let second = start(&[options, &["--addr", "10.0.0.2/24"]].concat(), &cable);
        if options.is_empty() {
            [&first, &second].into_iter().for_each(plugs);
        }
        second.ping("10.0.0.1");
        second.exit(0);
        first.exit(0);
    }
    // A switch: its bridge on the panel, its port in user space, its report.
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let port = lab.vnl("vde", "sw");
    let first = start(&["--addr", "10.0.1.1/24"], &port);
    let second = start(&["--addr", "10.0.1.2/24"], &port);
    [&first, &second].into_iter().for_each(plugs);
    second.ping("10.0.1.1");
    let third = start(&["--no-panel", "--addr", "10.0.1.3/24"], &port);
    third.ping("10.0.1.2");
    let report = lab.vdectl(["status"]).ok();
    assert!(report.contains("port 3"), "{report}");
    // Nested: the outer's options reach the inner by two doors.
    let vlan = format!("vlan://5{{netem://delay=1ms{{{port}}}}}");
    let [fourth, fifth] =
        ["10.0.2.1/24", "10.0.2.2/24"].map(|address| start(&["--addr", address], &vlan));
    fifth.ping("10.0.2.1");
    // The descriptor of a bound socket goes to the next worker.
    kill_workers(fourth.proc().pid());
    wait_until("the link is there again", PATIENCE, || {
        fifth.run("ping -c 1 -W 1 10.0.2.1").0 == 0
    });
    switch.terminate();
}

#[test]
fn a_malformed_table_is_refused_in_one_line() {
    need!("gcc");
    let lab = Lab::new();
    let refused = |source: &str, words: &[&str]| {
        x(&lab, &format!("#include \"vdens-plugin.h\"\n{source}"));
        lab.vdens(["x://", "true"]).refused(words);
        let report = lab.vdectl(["plugin", "check", "x"]).run();
        assert_eq!(report.code(), Some(1), "{report:#?}");
        let line = report
            .stdout
            .lines()
            .find(|line| line.starts_with("FAILED"));
        let line = line.unwrap_or_default();
        assert!(
            words.iter().all(|word| line.contains(word)),
            "{words:?}: {report:#?}"
        );
    };
    let table = |members: &str| {
        format!(
            "const uint32_t vdens_plugin_abi = 1;
            static int o(const struct vdens_request *r, struct vdens_link *l, struct vdens_error *e)
            {{ (void)r; (void)l; (void)e; return -1; }}
            int (*used)(const struct vdens_request *, struct vdens_link *, struct vdens_error *) = o;
            const struct vdens_plugin vdens_plugin_c1 = {{ {members} }};"
        )
    };
    let size = ".struct_size = sizeof(struct vdens_plugin)";
    let malformed = "its vdens_plugin_c1 is malformed";
    for (members, why) in [
        (
            "0".to_owned(),
            "the struct_size of struct vdens_plugin is 0",
        ),
        (format!("{size}, .open = o"), "its scheme is a null pointer"),
        (
            format!("{size}, .scheme = \"x\", .description = \"\\xff\""),
            "its description is not UTF-8",
        ),
        (
            format!("{size}, .scheme = \"x\", .description = \"d\", .version = \"1\""),
            "it has no function open",
        ),
    ] {
        refused(
            &table(&members),
            &[malformed, why, "report this to the plugin's author"],
        );
    }
    let y = format!("{size}, .scheme = \"y\", .description = \"d\", .version = \"1\", .open = o");
    refused(&table(&y), &["it serves the scheme 'y', not 'x'"]);
    refused(
        "const struct vdens_plugin vdens_plugin_c1 = { 0 };",
        &["has no symbol vdens_plugin_abi"],
    );
}

/// What a link does wrong ends the link with a line that says it, never the program by a crash.
#[test]
fn a_sloppy_link_is_told_in_one_line() {
    need!("gcc");
    let lab = Lab::new();
    let calls = "static struct vdens_fds fds(const void *l) { (void)l; return (struct vdens_fds){ FD, FD }; }
        static int rx(void *l, struct vdens_batch *b, struct vdens_error *e) { (void)l; (void)b; (void)e; RECV }
        static int32_t tx(void *l, struct vdens_batch *b, uint32_t s, struct vdens_error *e)
        { (void)l; (void)e; return (int32_t)(b->len - s); }
        static void done(void *l) { (void)l; }
        static const struct vdens_link_calls calls = { SIZE, fds, rx, tx, NULL, NULL, NULL, done };
        static int o(const struct vdens_request *r, struct vdens_link *l, struct vdens_error *e)
        { (void)r; (void)e; (void)&calls; (void)l; OPEN }
        const uint32_t vdens_plugin_abi = 1;
        const struct vdens_plugin vdens_plugin_c1 =
            { sizeof(struct vdens_plugin), \"x\", \"d\", \"1\", VDENS_CAP_ONE_END, o };";
    let good = [
        ("FD", "2"),
        ("RECV", "return 0;"),
        ("SIZE", "sizeof calls"),
        ("OPEN", "l->calls = &calls; return 0;"),
    ];
    for (changed, to, words) in [
        (
            "OPEN",
            "return -1;",
            "open() failed, and the plugin does not say why",
        ),
        (
            "OPEN",
            "return 0;",
            "there is no struct vdens_link_calls: the pointer is null",
        ),
        (
            "OPEN",
            "l->calls = (const void *)9; return 0;",
            "misaligned",
        ),
        (
            "OPEN",
            "return vdens_fail(e, 77, 0, \"two\\nlines\");",
            "two lines",
        ),
        (
            "SIZE",
            "0",
            "the struct_size of struct vdens_link_calls is 0",
        ),
        ("SIZE", "24", "its link has no function"),
        ("FD", "-1", "fds() returned -1, which is no open descriptor"),
        (
            "FD",
            "999",
            "fds() returned 999, which is no open descriptor",
        ),
    ] {
        let mut code = format!("#include \"vdens-plugin.h\"\n{calls}");
        for (name, usual) in good {
            code = code.replace(name, if name == changed { to } else { usual });
        }
        x(&lab, &code);
        lab.vdens(["x://", "true"]).refused(&[words]);
    }
}

/// The header as it was frozen, and a plugin on it: it loads, carries traffic, and uses every
/// service of its host but the panel.
#[test]
fn a_plugin_of_the_frozen_door_works() {
    need!("gcc", "ping");
    let lab = Lab::new();
    compile_frozen(&lab);
    crate::plugin_authors::frozen_works(&lab);
}
