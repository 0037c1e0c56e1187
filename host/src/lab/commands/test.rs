//! `vdectl lab test`: runs the tests of a lab's file.
//!
//! A test passes when its command ends with the expected status. Until its time is over, it is run
//! again: when the node's interfaces, addresses or routes change, for example because a routing
//! protocol has converged, and after a pause that doubles. So a test waits for what it needs, and
//! no longer.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::poll::{PollFd, PollFlags};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use super::change::{self, Lifetime};
use super::find;
use super::join::{self, Streams};
use crate::error::{Error, Result, system};
use crate::ipc::lab_socket;
use crate::lab::model::{Lab, Test};
use crate::lab::{file, of_node};
use crate::namespace::enter::Door;
use crate::output::Text;
use crate::plugins::host_services::InstalledPlugins;
use crate::sys::child::Exit;
use crate::sys::process::wait;

/// The exit status if a test has failed.
const EXIT_FAILED: i32 = 1;

/// How long a command may go on after its test's time is over, before it is killed.
const OVERTIME: Duration = Duration::from_secs(30);

/// The first pause between two attempts, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// How much of a command's output is shown, in bytes.
const SHOWN: usize = 4096;

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The Test Anything Protocol, version 14
    Tap,
    /// XML as JUnit has it
    Junit,
}

/// What became of a test.
#[derive(Debug)]
struct Verdict<'a> {
    test: &'a Test,
    node: &'a str,
    /// How long it took, with all attempts.
    time: Duration,
    /// Why it failed, and what its last attempt has printed.
    failure: Option<(String, String)>,
}

/// Runs the tests of a lab: of a file, whose lab is started and ended if it does not run yet, or of
/// the lab that runs by that name. Returns the exit status. A lab that was started for the tests
/// ends with this process, even if that is killed.
///
/// # Errors
/// The file is wrong, its lab cannot be started, or a test cannot be run.
pub fn test(lab: &str, format: Format, plugins: &InstalledPlugins) -> Result<i32> {
    let path = Path::new(lab);
    let is_file = path.is_file();
    let lab = match is_file {
        true => file::read(path, plugins)?,
        false => file::read(Path::new(&find::the_lab(Some(lab))?.lab.file), plugins)?,
    };
    let is_started = is_file && lab_socket::connect_to(&lab.name).is_err();
    if is_started {
        change::up(path, plugins.clone(), Lifetime::Caller)?;
    }
    let outcome = run_all(&lab, format);
    let ended = match is_started {
        true => change::down(Some(&lab.name)),
        false => Ok(()),
    };
    outcome.and_then(|status| ended.map(|()| status))
}

fn run_all(lab: &Lab, format: Format) -> Result<i32> {
    let running = find::the_lab(Some(&lab.name))?.lab;
    let mut verdicts = Vec::new();
    if format == Format::Tap {
        let plan = format!("1..{}", lab.tests.len());
        Text::from_iter(["TAP version 14", &plan]).print()?;
    }
    for test in &lab.tests {
        let name = &lab.nodes[test.node].name;
        let node = running.nodes.iter().find(|node| node.name == *name);
        let node = node.ok_or_else(|| {
            Error::closed(format!("the lab {} runs without the node {name}", lab.name))
                .hint("bring it up to date: vdectl lab apply FILE")
        })?;
        let verdict = run(test, name, node.pid).map_err(|error| of_node(name, error))?;
        if format == Format::Tap {
            tap(verdicts.len() + 1, &verdict).print()?;
        }
        verdicts.push(verdict);
    }
    if format == Format::Junit {
        junit(&lab.name, &verdicts).print()?;
    }
    let is_passed = verdicts.iter().all(|verdict| verdict.failure.is_none());
    Ok(if is_passed { 0 } else { EXIT_FAILED })
}

/// Runs a test until it passes or its time is over.
fn run<'a>(test: &'a Test, node: &'a str, pid: u32) -> Result<Verdict<'a>> {
    let start = Instant::now();
    let deadline = start + test.within;
    let door = join::door(pid)?;
    let changes = watch(&door)?;
    let [mut pause, longest] = PAUSES;
    let failure = loop {
        // What changes from here on may make the next attempt pass.
        drain(&changes);
        let (status, output) = attempt(test, &door, deadline + OVERTIME)?;
        let why = match status {
            Some(status) if status == i32::from(test.expect) => break None,
            Some(status) => format!("exit status {status}, not {}", test.expect),
            None => "it does not end".to_owned(),
        };
        let now = Instant::now();
        if now >= deadline {
            break Some((why, output));
        }
        let mut fds = [PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
        wait(&mut fds, Some(deadline.min(now + pause)))?;
        pause = (2 * pause).min(longest);
    };
    Ok(Verdict {
        test,
        node,
        time: start.elapsed(),
        failure,
    })
}

/// Runs a test's command once. Returns its exit status, or none if it was killed at `deadline`, and
/// the end of its output.
fn attempt(test: &Test, door: &Door, deadline: Instant) -> Result<(Option<i32>, String)> {
    let memory = memfd_create("vdens-test", MFdFlags::MFD_CLOEXEC)
        .map_err(system("make a file in memory"))?;
    let cannot = |error| Error::io("read a test's output", &error);
    let null = File::open("/dev/null").map_err(cannot)?;
    let streams = Streams {
        input: null.into(),
        output: memory.try_clone().map_err(cannot)?,
        errors: memory.try_clone().map_err(cannot)?,
    };
    let words = ["/bin/sh", "-c", &test.run].map(Into::into);
    let mut child = join::start(door, &words, streams)?;
    let exit = child.wait(Some(deadline));
    if exit.is_none() {
        child.kill();
        child.wait(None);
    }
    let mut file = File::from(memory);
    file.rewind().map_err(cannot)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(cannot)?;
    let tail = &bytes[bytes.len().saturating_sub(SHOWN)..];
    let output = String::from_utf8_lossy(tail).trim().to_owned();
    Ok((exit.map(Exit::code), output))
}

/// A socket that becomes readable when the interfaces, addresses or routes of a node change.
fn watch(door: &Door) -> Result<OwnedFd> {
    let mut fds = door.inside(|| {
        let kind = SockType::Raw;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV6_ROUTE;
        let socket = socket(
            AddressFamily::Netlink,
            kind,
            flags,
            SockProtocol::NetlinkRoute,
        )
        .map_err(system("watch the node's network"))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))
            .map_err(system("watch the node's network"))?;
        Ok(vec![socket])
    })?;
    fds.pop()
        .ok_or_else(|| Error::closed("a helper process lost a descriptor"))
}

/// Discards what a socket has.
fn drain(socket: &OwnedFd) {
    let mut buffer = [0; 8192];
    while recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
}

fn tap(number: usize, verdict: &Verdict<'_>) -> Text {
    let Verdict {
        test,
        node,
        time,
        failure,
    } = verdict;
    // A number sign would start a directive.
    let name = test.name.replace('\\', "\\\\").replace('#', "\\#");
    let mut text = Text::default();
    let Some((why, output)) = failure else {
        text.line(format_args!(
            "ok {number} - {name} # {} ms",
            time.as_millis()
        ));
        return text;
    };
    text.line(format_args!("not ok {number} - {name}"));
    text.line("  ---");
    text.line(format_args!("  message: {}", quoted(why)));
    text.line(format_args!("  node: {}", quoted(node)));
    text.line(format_args!("  command: {}", quoted(&test.run)));
    text.line(format_args!("  duration_ms: {}", time.as_millis()));
    text.line("  output: |");
    output
        .lines()
        .for_each(|line| text.line(format_args!("    {line}")));
    text.line("  ...");
    text
}

/// A string of YAML.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn junit(lab: &str, verdicts: &[Verdict<'_>]) -> Text {
    let failures = verdicts
        .iter()
        .filter(|verdict| verdict.failure.is_some())
        .count();
    let time: Duration = verdicts.iter().map(|verdict| verdict.time).sum();
    let mut text = Text::default();
    text.line("<?xml version=\"1.0\" encoding=\"UTF-8\"?>");
    text.line(format_args!(
        "<testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" time=\"{:.3}\">",
        xml(lab),
        verdicts.len(),
        time.as_secs_f64()
    ));
    for Verdict {
        test,
        node,
        time,
        failure,
    } in verdicts
    {
        let case = format!(
            "  <testcase classname=\"{}.{}\" name=\"{}\" time=\"{:.3}\"",
            xml(lab),
            xml(node),
            xml(&test.name),
            time.as_secs_f64()
        );
        match failure {
            None => text.line(format_args!("{case}/>")),
            Some((why, output)) => {
                text.line(format_args!("{case}>"));
                text.line(format_args!("    <failure message=\"{}\">", xml(why)));
                text.line(xml(&test.run));
                output.lines().for_each(|line| text.line(xml(line)));
                text.line("    </failure>");
                text.line("  </testcase>");
            }
        }
    }
    text.line("</testsuite>");
    text
}

/// Text as XML has it, without the characters that it cannot have.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || c == '\u{fffe}' || c == '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(test: &Test) -> [Verdict<'_>; 2] {
        let verdict = |failure| Verdict {
            test,
            node: "h1",
            time: Duration::from_millis(12),
            failure,
        };
        let failure = (
            "exit status 1, not 0".to_owned(),
            "one\ntwo <3\u{1b}".to_owned(),
        );
        [verdict(None), verdict(Some(failure))]
    }

    fn a_test() -> Test {
        Test {
            name: "h1 #1 & r1".into(),
            node: 0,
            run: "ping '1'".into(),
            expect: 0,
            within: Duration::ZERO,
        }
    }

    #[test]
    fn verdicts_as_tap() {
        let test = a_test();
        let [good, bad] = verdicts(&test);
        assert_eq!(tap(1, &good).as_ref(), "ok 1 - h1 \\#1 & r1 # 12 ms\n");
        let expected = "not ok 2 - h1 \\#1 & r1
  ---
  message: 'exit status 1, not 0'
  node: 'h1'
  command: 'ping ''1'''
  duration_ms: 12
  output: |
    one
    two <3\\u{1b}
  ...
";
        assert_eq!(tap(2, &bad).as_ref(), expected);
    }

    #[test]
    fn verdicts_as_junit() {
        let test = a_test();
        let text = junit("lab", &verdicts(&test));
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<testsuite name=\"lab\" tests=\"2\" failures=\"1\" time=\"0.024\">
  <testcase classname=\"lab.h1\" name=\"h1 #1 &amp; r1\" time=\"0.012\"/>
  <testcase classname=\"lab.h1\" name=\"h1 #1 &amp; r1\" time=\"0.012\">
    <failure message=\"exit status 1, not 0\">
ping '1'
one
two &lt;3\u{fffd}
    </failure>
  </testcase>
</testsuite>
";
        assert_eq!(text.as_ref(), expected);
    }
}
