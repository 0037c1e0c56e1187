//! `cmd://`: a vdestream to a command.

use std::time::Duration;

use nix::sys::signal::Signal;
use vdens_tests::{Lab, PATIENCE, need, stretched, wait_until};

#[test]
fn ours_and_debians_carry_each_others_streams() {
    need!("vde_plug", "socat");
    // Who runs the command, and which plug the command is.
    for (by_debian, plug) in [
        (false, "vde_plug"),
        (false, "/usr/bin/vde_plug"),
        (true, "vde_plug"),
    ] {
        let lab = Lab::new();
        let cable = lab.vnl("ptp", "p");
        // Debian's looks for the command on no path.
        let plug = match by_debian {
            true => lab.bin().join(plug).display().to_string(),
            false => plug.to_owned(),
        };
        if plug.starts_with("/usr/bin") {
            lab.expect("p");
        }
        let args = [&format!("cmd://{plug} {cable}"), "sh"];
        let a = match by_debian {
            true => lab.debian("vdens", args).session(),
            false => lab.vdens(args).session(),
        };
        a.address("vde0", "10.0.0.1/24");
        let b = lab.vdens([&cable, "sh"]).session();
        b.address("vde0", "10.0.0.2/24");
        a.ping("10.0.0.2");
        if by_debian {
            // Its reader takes what one read brings for a frame, and is lost when the pipe was
            // full: small amounts only.
            a.ok("ping -c 5 -i 0.2 -W 20 -s 1400 10.0.0.2");
            continue;
        }
        a.send_file(&b, "10.0.0.2", 4);
        b.send_file(&a, "10.0.0.1", 4);
    }
}

#[test]
fn the_shell_reads_the_command() {
    let lab = Lab::new();
    let file = lab.path("said");
    lab.expect("said");
    let command = format!("cmd://echo \"it's {{a}} %41 [b]\" >{file} && exec sleep 1000");
    let session = lab.vdens([&command, "sh"]).session();
    wait_until("the command runs", PATIENCE, || {
        std::fs::read_to_string(&file).is_ok_and(|said| said == "it's {a} %41 [b]\n")
    });
    assert!(lab.is_running("sleep 1000"));
    assert_eq!(session.exit(3).code(), Some(3));
    // The lab's end finds what is left of it.
}

#[test]
fn a_command_that_ends_costs_the_carrier_and_is_started_again() {
    let lab = Lab::new();
    let file = lab.path("starts");
    lab.expect("starts");
    let command = format!("cmd://echo $$ >>{file}; exec vde_plug null://");
    let session = lab.vdens(["--up", &command, "sh"]).session();
    let starts = || std::fs::read_to_string(&file).unwrap_or_default();
    let carrier = |up: bool| {
        wait_until(
            "the carrier follows",
            stretched(Duration::from_secs(5)),
            || session.ok("ip link show vde0").contains("NO-CARRIER") != up,
        );
    };
    wait_until("the command runs", PATIENCE, || {
        starts().lines().count() == 1
    });
    carrier(true);
    let first: i32 = starts().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), Signal::SIGKILL).unwrap();
    wait_until("it is started again", PATIENCE, || {
        starts().lines().count() == 2
    });
    carrier(true);
    // Reaped, not a zombie.
    assert!(!std::path::Path::new(&format!("/proc/{first}")).exists());
    std::fs::write(lab.path("starts"), "").unwrap();
    assert_eq!(session.exit(0).code(), Some(0));
}

#[test]
fn one_that_is_no_stream_leaves_the_interface_without_carrier() {
    let lab = Lab::new();
    let session = lab.vdens(["--up", "cmd://exit 3", "sh"]).session();
    wait_until("no carrier", stretched(Duration::from_secs(5)), || {
        session.ok("ip link show vde0").contains("NO-CARRIER")
    });
    lab.vdens(["cmd://", "true"])
        .refused(&["cmd://", "names no command"]);
}
