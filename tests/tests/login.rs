//! vde_plug as the restricted login shell of an account: what the other end of ssh can have it do.

use std::fs;
use std::path::Path;

use vdens_tests::{Cmd, Lab, Proc, need};

/// What sshd runs for the account when the other machine asks for `command`.
fn login<'lab>(lab: &'lab Lab, command: &str) -> Cmd<'lab> {
    lab.vde_plug(["-c", command])
}

fn switch(lab: &Lab) -> Proc<'_> {
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    switch
}

/// Has the login shell run a command line that it must refuse, without a trace of `words` in what
/// it says.
#[track_caller]
fn is_refused(lab: &Lab, command: &str, secrets: &[&str]) {
    let output = login(lab, command).refused(&[]);
    for word in secrets {
        assert!(!output.stderr.contains(word), "{command}: {output:?}");
    }
    assert!(!lab.dir().join("ran").exists(), "{command}: {output:?}");
}

#[test]
fn frames_pass() {
    let lab = Lab::new();
    let _switch = switch(&lab);
    let check = |command: &str, far: &str| {
        let stream = format!("=vde_plug -c '{command}'");
        let near = lab
            .vdens(["--addr", "10.0.0.1/24", &stream, "sh"])
            .session();
        let far = lab.vdens(["--addr", "10.0.0.2/24", far, "sh"]).session();
        near.ping("10.0.0.2");
        far.ping("10.0.0.1");
    };
    let (sw, cable) = (lab.vnl("vde", "sw"), lab.vnl("ptp", "p"));
    check(&format!("vde_plug {sw}"), &sw);
    check(&format!("vde_plug {}", lab.path("sw")), &sw);
    check("/usr/bin/vde_plug -q sw", &sw);
    let options = "--port 7 -m 0600 -g";
    let group = &lab.user().gid;
    check(&format!("vde_plug {options} {group} -D web {sw}"), &sw);
    check(&format!("vde_plug {cable}"), &cable);
}

#[test]
fn nothing_but_vde_plug_is_run() {
    let lab = Lab::new();
    let _switch = switch(&lab);
    let (sw, ran) = (lab.vnl("vde", "sw"), lab.path("ran"));
    for command in [
        format!("touch {ran}"),
        format!("sh -c touch {ran}"),
        format!("vde_plug;touch {ran}"),
        format!("vde_plug {sw} = touch {ran}"),
        format!("vde_plug = touch {ran}"),
        format!("vde_plug = sh -c touch {ran}"),
        format!("vde_plug cmd://touch {ran}"),
        format!("vde_plug {sw} cmd://touch {ran}"),
        format!("vde_plug vlan://1{{cmd://touch {ran}}}"),
        format!("vde_plug {sw}{{cmd://touch {ran}}}"),
        format!("vde_plug libvdeplug://cmd://touch {ran}"),
        format!("vde_plug -c {sw}"),
        format!("vde_plug {sw} {sw}"),
    ] {
        is_refused(&lab, &command, &[]);
    }
    for vnl in [
        "slirp://",
        "hub://h",
        "switch://s",
        "udp://127.0.0.1:1",
        "tap://tap0",
    ] {
        is_refused(&lab, &format!("vde_plug {vnl}"), &[]);
    }
    // A login at a terminal.
    let shell = lab.bin().join("vde_plug");
    let exec = format!("exec -a -vde_plug {}", shell.display());
    lab.command("bash", ["-c", &exec])
        .refused(&["ssh HOST vde_plug VNL"]);
}

#[test]
fn no_file_is_written() {
    let lab = Lab::new();
    let _switch = switch(&lab);
    let sw = lab.vnl("vde", "sw");
    let (file, new) = (lab.write("file", "precious\n"), lab.path("new"));
    for options in [
        format!("-p {file}"),
        format!("-p {new}"),
        format!("--pidfile={new}"),
        format!("--log-file {file} -vvv"),
        format!("--log-file {new}"),
        "-d".into(),
        "-l".into(),
        "-v".into(),
        "--wait".into(),
        "--no-panel".into(),
        "--port2 1".into(),
        "-G 0".into(),
        "-M 0".into(),
    ] {
        is_refused(&lab, &format!("vde_plug {options} {sw}"), &[]);
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            "precious\n",
            "{options}"
        );
        assert!(!Path::new(&new).exists(), "{options}");
    }
    is_refused(&lab, &format!("vde_plug ptp://{file}"), &["precious"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious\n");
}

#[test]
fn no_file_is_read() {
    let lab = Lab::new();
    let _switch = switch(&lab);
    let sw = lab.vnl("vde", "sw");
    let secret = lab.write("secret", "sesame\n");
    let run = lab.write("run", format!("cmd://touch {}\n", lab.path("ran")));
    for command in [
        format!("vde_plug --config {secret} {sw}"),
        format!("vde_plug --config /etc/passwd {sw}"),
        format!("vde_plug --plugin-dir {} {sw}", lab.path("")),
        format!("vde_plug {secret}"),
        format!("vde_plug vde://{secret}"),
        format!("vde_plug {run}"),
        "vde_plug /etc/passwd".into(),
        "vde_plug /dev/stdin".into(),
    ] {
        is_refused(&lab, &command, &["sesame", "root:", "touch"]);
    }
}

/// sshd can be set up to take variables from the other machine, and files can come by other ways.
#[test]
fn the_environment_and_the_users_files_say_nothing() {
    let lab = Lab::new();
    let _switch = switch(&lab);
    let ran = lab.path("ran");
    let plugins = lab.mkdir("plugins");
    for dir in [Path::new(&plugins), &lab.drop_in()] {
        for scheme in ["vde", "ptp"] {
            let plugin = dir.join(format!("libvdens_{scheme}.so"));
            fs::write(&plugin, "no library").unwrap();
            lab.give(&plugin);
        }
    }
    let config = format!(
        "[login]\nschemes = [\"vde\", \"null\"]\n[defaults]\nvnl = \"cmd://touch {ran}\"\n\
         [plugins]\npath = [\"{plugins}\"]\n[log]\nlevel = \"trace\"\n"
    );
    let config = lab.write("vdens.toml", config);
    lab.sh(&format!(
        "mkdir -p ~/.config/vdens ~/.vdeplug xdg/vdens
         cp {config} ~/.config/vdens/; cp {config} xdg/vdens/
         echo 'cmd://touch {ran}' >~/.vdeplug/default"
    ))
    .ok();
    lab.expect("xdg");
    let told = |command: &str| {
        login(&lab, command)
            .env("VDENS_PLUGIN_PATH", &plugins)
            .env("XDG_CONFIG_HOME", lab.path("xdg"))
            .env("VDEPLUGIN_PATH", &plugins)
    };
    let sw = lab.vnl("vde", "sw");
    let output = told(&format!("vde_plug {sw}")).run();
    assert_eq!(
        (output.code(), &*output.stderr),
        (Some(0), ""),
        "{output:?}"
    );
    told("vde_plug null://").refused(&["'null'"]);
    // There may be a default switch on this machine.
    let output = told("vde_plug").run();
    assert!(!lab.dir().join("ran").exists(), "{output:?}");
    assert!(!output.stderr.contains(".vdeplug"), "{output:?}");
}

#[test]
fn the_system_can_allow_other_schemes() {
    need!("unshare");
    let lab = Lab::new();
    let _switch = switch(&lab);
    let etc = lab.mkdir("etc");
    let run = |config: &str, command: &str| {
        let machine = format!(
            "rm -rf {etc}/*; cp /etc/passwd /etc/group /etc/nsswitch.conf {etc}/
             mkdir {etc}/vdens; echo '{config}' >{etc}/vdens/vdens.toml
             mount --bind {etc} /etc"
        );
        login(&lab, command).on_changed_machine(&machine)
    };
    let udp = "vde_plug udp://127.0.0.1:5001->127.0.0.1:5002";
    run("", udp).refused(&["'udp'", "vde, ptp"]);
    let schemes = "[login]\nschemes = [\"udp\"]";
    run(schemes, udp).ok();
    run(schemes, "vde_plug sw").refused(&["'vde'", "allowed are udp"]);
    run(schemes, "vde_plug udp://1{cmd://id}").refused(&["a VNL within a VNL"]);
    run("[login]\nschemes = [\"cmd\"]", "vde_plug sw").refused(&["vdens.toml, line 2", "'cmd'"]);
    let default = format!("[defaults]\nvnl = \"{}\"", lab.vnl("vde", "sw"));
    run(&default, "vde_plug").ok();
    run("[defaults]\nvnl = \"cmd://id\"", "vde_plug").refused(&["'cmd'"]);
}
