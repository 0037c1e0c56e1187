//! Parts of `nat://` that are killed or stopped.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, children, name, need, wait_until};

use crate::nat_internet::Internet;

#[test]
fn whatever_is_killed_comes_back() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let ask = net.who("198.51.100.1");
    let session = lab
        .vdens(["--auto", "nat://", "sh"])
        .inside(&net.host)
        .session();
    assert_eq!(session.ok(&ask).trim(), "you are 192.0.2.2");
    for victim in ["vdens-nat proxy ", "vdens-nat gateway "] {
        let processes = lab.processes();
        let (pid, _) = processes
            .iter()
            .find(|(_, line)| line.contains(victim) && !line.contains("vdens -q"))
            .unwrap();
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
        wait_until("connections work again", PATIENCE, || {
            session.run(&ask).1.trim() == "you are 192.0.2.2"
        });
    }
    let worker = children(session.proc().pid());
    for pid in worker {
        let is_worker = name(pid).is_some_and(|name| name.starts_with("vdens"));
        if is_worker {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
    }
    wait_until("connections work again", PATIENCE, || {
        session.run(&ask).1.trim() == "you are 192.0.2.2"
    });
    assert_eq!(session.exit(0).code(), Some(0));
}
