//! `nat://` among processes that hang and clients that mean harm.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, need, wait_until};

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
