//! `nat://` among processes that hang and clients that mean harm.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, User, need, wait_until};

use crate::nat_internet::{Internet, proxy};

/// The process id of the gateway: the command of the session that is the gateway's.
fn gateway(lab: &Lab) -> i32 {
    let processes = lab.processes();
    let is_gateway = |line: &str| line.contains("vdens-nat gateway ") && !line.contains("vdens -q");
    let found = processes.iter().find(|(_, line)| is_gateway(line));
    found
        .map(|(pid, _)| *pid)
        .unwrap_or_else(|| panic!("no gateway runs: {processes:?}"))
}

#[test]
fn a_part_that_is_stopped_is_replaced() {
    need!("root", "python3");
    for (name, find) in [("proxy", proxy as fn(&Lab) -> i32), ("gateway", gateway)] {
        let lab = Lab::new();
        let net = Internet::new(&lab);
        let ask = net.who("198.51.100.1");
        let session = lab
            .vdens(["--auto", "nat://", "sh"])
            .inside(&net.host)
            .session();
        assert_eq!(session.ok(&ask).trim(), "you are 192.0.2.2");
        let pid = find(&lab);
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        wait_until("the stopped process is gone", PATIENCE, || {
            kill(Pid::from_raw(pid), None).is_err()
        });
        wait_until("connections work again", PATIENCE, || {
            session.run(&ask).1.trim() == "you are 192.0.2.2"
        });
        let said = session.proc().stderr();
        let line = format!("the {name} of nat:// does not answer");
        assert!(said.contains(&line), "{said}");
        assert_eq!(session.exit(0).code(), Some(0));
    }
}

/// The end of a process that is stopped is not waited for, and nothing of it stays.
#[test]
fn stopped_parts_end_with_the_session() {
    need!("root", "python3");
    for find in [proxy, gateway] {
        let lab = Lab::new();
        let net = Internet::new(&lab);
        let session = lab
            .vdens(["--auto", "nat://", "sh"])
            .inside(&net.host)
            .session();
        session.ok(&net.who("198.51.100.1"));
        kill(Pid::from_raw(find(&lab)), Signal::SIGSTOP).unwrap();
        assert_eq!(session.exit(0).code(), Some(0));
        wait_until("no process is left", PATIENCE, || {
            lab.processes()
                .iter()
                .all(|(_, line)| !line.contains("vdens"))
        });
    }
}

#[test]
fn a_program_that_others_can_change_is_not_run() {
    need!("root");
    let lab = Lab::new();
    let program = lab.bin().join("vdens-nat");
    let refused = |words: &[&str]| lab.vdens(["nat://", "true"]).refused(words);
    fs::set_permissions(&program, Permissions::from_mode(0o777)).unwrap();
    refused(&[
        "cannot run",
        "vdens-nat",
        "can be written by others",
        "chmod go-w",
    ]);
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let other = User::other();
    chown(&program, Some(other.uid), Some(other.gid)).unwrap();
    refused(&[
        "cannot run",
        "vdens-nat",
        "it belongs to",
        "a copy of your own",
    ]);
    fs::remove_file(&program).unwrap();
    refused(&["needs the program", "vdens-nat", "install it"]);
}

#[test]
fn the_parts_have_no_more_rights_than_they_need() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    // A descriptor that a careless caller leaves open.
    let vdens = lab.sh("exec 9</etc/passwd; exec vdens --auto nat:// sh");
    let session = vdens.inside(&net.host).session();
    session.ok(&net.who("198.51.100.1"));
    let [proxy, gateway] = [proxy(&lab), gateway(&lab)];
    let status = |pid: i32, name: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    };
    let user_namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_eq!(status(proxy, "CapEff"), "0000000000000000");
    assert_eq!(status(proxy, "Seccomp"), "2", "it is filtered");
    // The gateway's are those of a session's command, which hold in its own namespaces only.
    assert_eq!(status(gateway, "CapEff"), "0000000000003c00");
    assert_ne!(user_namespace(gateway), user_namespace(proxy));
    for pid in [proxy, gateway] {
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let number = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().parse::<i32>();
        for entry in open.filter(|entry| number(entry).is_ok_and(|number| number > 2)) {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            let is_own = ["socket:", "anon_inode:", "pipe:"];
            let is_own = is_own.iter().any(|kind| target.starts_with(kind));
            assert!(is_own || target.contains("/vdens-nat-"), "{target}");
        }
    }
    assert_eq!(session.exit(0).code(), Some(0));
}
