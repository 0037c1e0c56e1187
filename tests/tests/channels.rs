//! The channels between the processes of a session: a malformed message is not a closed channel.

use std::thread::sleep;
use std::time::Duration;

use vdens_tests::{Lab, PATIENCE, User, need, wait_until};

use crate::status::{link, status};

/// Sends a packet that is no message over each SEQPACKET socket of a process, as that process.
const JUMBLE: &str = r#"
import ctypes, os, socket, sys
pid, text = int(sys.argv[1]), sys.argv[2].encode()
libc = ctypes.CDLL(None, use_errno=True)
process = libc.syscall(434, pid, 0)  # pidfd_open
sent = 0
for fd in map(int, os.listdir(f"/proc/{pid}/fd")):
    if not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:"):
        continue
    ours = libc.syscall(438, process, fd, 0)  # pidfd_getfd
    if ours < 0:
        sys.exit(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    s = socket.socket(fileno=ours)
    if (s.family, s.type & 0xf) == (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        s.send(text)
        sent += 1
print(sent)
"#;

/// Fault: a worker sends nonsense on both of its channels. It costs the worker these messages, not
/// its life.
#[test]
fn a_worker_outlives_a_malformed_message() {
    need!("root", "python3");
    let lab = Lab::new();
    let session = lab.vdens(["null://", "sleep", "1000"]).spawn();
    let pid = session.pid().cast_unsigned();
    let told = || link(&status(&lab), pid, 0);
    wait_until("the session", PATIENCE, || told()["state"] == "up");
    let worker = told()["worker"].clone();
    for text in ["jumble", "\"ping\"", &"x".repeat(20_000)] {
        let args = ["-c", JUMBLE, &worker.to_string(), text];
        let sent = lab.command("python3", args).by(User::root()).ok();
        assert_eq!(sent, "2\n");
    }
    let warnings = || session.stderr().matches("malformed message").count();
    wait_until("warnings", PATIENCE, || warnings() == 6);
    // The supervisor asks it whether it is there, and it answers.
    sleep(Duration::from_secs(7));
    let after = told();
    assert_eq!(after["worker"], worker, "{after:#}");
    assert_eq!(
        (&after["restarts"], &after["state"]),
        (&0.into(), &"up".into())
    );
    assert_eq!(warnings(), 6, "{}", session.stderr());
}
