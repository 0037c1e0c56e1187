//! A shell in a namespace, or in a virtual machine, to run one script after the other in.
//!
//! Scripts go to the shell's standard input. Behind each one a line with a number and the script's
//! status is printed, which tells its output from the next one's. Nothing depends on how the shell
//! was started, so this works through vdens, through Debian's, and over a serial line.

use std::cell::Cell;
use std::io::Write;
use std::process::ChildStdin;
use std::time::Duration;

use crate::{Output, PATIENCE, Proc, becomes_true, stretched};

/// A shell behind a pipe. Dropping it closes the shell's input, which ends the shell and the
/// program that started it.
#[derive(Debug)]
pub struct Session<'lab> {
    proc: Proc<'lab>,
    stdin: Option<ChildStdin>,
    scripts: Cell<u32>,
    /// How much of the output belongs to earlier scripts, in bytes.
    read: Cell<usize>,
}

impl<'lab> Session<'lab> {
    pub(crate) fn new(proc: Proc<'lab>, stdin: ChildStdin) -> Self {
        Self {
            proc,
            stdin: Some(stdin),
            scripts: Cell::new(0),
            read: Cell::new(0),
        }
    }

    /// The process that the shell was started with (vdens, say).
    pub fn proc(&self) -> &Proc<'lab> {
        &self.proc
    }

    /// Runs a script, which must succeed; what it wrote, standard error included.
    #[track_caller]
    pub fn ok(&self, script: &str) -> String {
        let (status, text) = self.run(script);
        assert_eq!(
            status,
            0,
            "{} in {}: {text}",
            script.trim(),
            self.proc.label()
        );
        text
    }

    /// Runs a script; its status and what it wrote, standard error included.
    #[track_caller]
    pub fn run(&self, script: &str) -> (i32, String) {
        self.run_within(PATIENCE, script)
    }

    /// Runs a script that may take as long as `limit`.
    #[track_caller]
    pub fn run_within(&self, limit: Duration, script: &str) -> (i32, String) {
        self.start(script);
        self.finish(limit)
    }

    /// Starts a script; [`Session::finish`] waits for it. In between, other sessions can be used.
    #[track_caller]
    pub fn start(&self, script: &str) {
        let number = self.scripts.get() + 1;
        self.scripts.set(number);
        self.write(&format!(
            "{{ {script}\n}} </dev/null 2>&1; printf '\\n@@%d@%d@\\n' {number} $?\n"
        ));
    }

    /// Waits for the script that [`Session::start`] started.
    #[track_caller]
    pub fn finish(&self, limit: Duration) -> (i32, String) {
        let mark = format!("\n@@{}@", self.scripts.get());
        let mut result = None;
        becomes_true(limit, || {
            let over = !self.proc.is_running();
            // A serial line ends lines with CR LF.
            let output = self.proc.stdout().replace('\r', "");
            let fresh = &output[self.read.get()..];
            result = fresh.split_once(&mark).and_then(|(text, rest)| {
                let (status, _) = rest.split_once("@\n")?;
                self.read
                    .set(self.read.get() + text.len() + mark.len() + status.len() + 2);
                Some((status.parse().ok()?, text.to_owned()))
            });
            result.is_some() || over
        });
        result.unwrap_or_else(|| {
            let (said, errors) = (self.proc.stdout(), self.proc.stderr());
            let label = self.proc.label();
            panic!("no end of the script within {limit:?} in {label}:\n{said}{errors}")
        })
    }

    /// Gives an interface an address and sets it up.
    #[track_caller]
    pub fn address(&self, interface: &str, cidr: &str) {
        let nodad = if cidr.contains(':') { "nodad" } else { "" };
        self.ok(&format!(
            "ip addr add {cidr} dev {interface} {nodad} && ip link set {interface} up"
        ));
    }

    /// Sends a file of random bytes through TCP to another session, at the address, and compares
    /// what arrives with what was sent.
    #[track_caller]
    pub fn send_file(&self, to: &Session<'_>, address: &str, mebibytes: u32) {
        let limit = stretched(Duration::from_secs(120));
        let (family, host) = match address.contains(':') {
            true => ("TCP6", format!("[{address}]")),
            false => ("TCP4", address.to_owned()),
        };
        to.start(&format!(
            "socat -u {family}-LISTEN:5000,reuseaddr STDOUT | sha256sum"
        ));
        let (status, sent) = self.run_within(
            limit,
            &format!(
                "f=$(mktemp -p \"$HOME\") && head -c {mebibytes}M /dev/urandom >$f && sha256sum <$f &&
                 socat -u FILE:$f {family}:{host}:5000,retry=100,interval=0.05; s=$?; rm -f $f; (exit $s)"
            ),
        );
        assert_eq!(status, 0, "sending to {address}: {sent}");
        let (_, received) = to.finish(limit);
        assert_eq!(sent.trim(), received.trim(), "what arrived at {address}");
    }

    /// Waits until the address answers to pings from here.
    #[track_caller]
    pub fn ping(&self, address: &str) {
        let answered = becomes_true(PATIENCE, || {
            self.run(&format!("ping -c 1 -W 1 {address}")).0 == 0
        });
        let state = self.run("ip addr; ip route; ip neigh; cat /proc/net/dev").1;
        assert!(answered, "no answer from {address}; {state}");
    }

    /// Ends the shell with a status; how that which started it ended.
    #[track_caller]
    pub fn exit(mut self, status: u8) -> Output {
        self.write(&format!("exit {status}\n"));
        self.stdin = None;
        self.proc.output_within(PATIENCE)
    }

    /// Types to the shell.
    #[track_caller]
    fn write(&self, text: &str) {
        let mut stdin = self.stdin.as_ref().expect("the shell has its input");
        if let Err(error) = stdin.write_all(text.as_bytes()) {
            let stderr = self.proc.stderr();
            panic!("{} has ended: {error}\n{stderr}", self.proc.label());
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.stdin = None;
        // Whether it ended or not, dropping the process does the rest.
        self.proc.ends_within(stretched(Duration::from_secs(3)));
    }
}
