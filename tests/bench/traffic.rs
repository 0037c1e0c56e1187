//! Measurements of traffic between two nodes.
//!
//! Theory of operation. Receivers start first, and senders when the receiver's socket is in the
//! namespace. iperf3 measures TCP, with a server for each run. The benchmark's own tools measure
//! everything else, because iperf3's UDP sender is too slow to overload a link. Processor time is
//! what all processors of the machine were busy during a run: it includes softirqs, the kernel's
//! work for both ends, iperf3 itself, and other programs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::Result;
use crate::lab::{Lab, Node, PATIENCE, Who, installed};
use crate::network::wait_for_port;
use crate::process::{Proc, check_interrupted, pause};

pub(crate) const IPERF: u16 = 5201;
const ECHO: u16 = 7007;
const SINK: u16 = 7008;
const GIB: f64 = (1_u64 << 30) as f64;

/// What a TCP run found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tcp {
    /// What arrived, in Gbit/s.
    pub(crate) rate: f64,
    /// For each second.
    pub(crate) retransmits: f64,
    /// Processor seconds for each GiB that arrived.
    pub(crate) effort: f64,
}

/// A TCP run that has been started.
#[derive(Debug)]
pub(crate) struct TcpRun<'lab> {
    client: Proc<'lab>,
    server: Proc<'lab>,
    seconds: u64,
    busy: f64,
}

impl<'lab> TcpRun<'lab> {
    /// Starts sending from one node to another, or the other way round if `reverse`.
    pub(crate) fn start(
        lab: &'lab Lab,
        from: &Node,
        to: &Node,
        streams: u32,
        seconds: u64,
        reverse: bool,
    ) -> Result<Self> {
        Self::start_on(IPERF, lab, [from, to], streams, seconds, reverse)
    }

    /// The same on a port, for several that run to one node at once.
    pub(crate) fn start_on(
        port: u16,
        lab: &'lab Lab,
        [from, to]: [&Node; 2],
        streams: u32,
        seconds: u64,
        reverse: bool,
    ) -> Result<Self> {
        if !installed("iperf3") {
            return Err("iperf3 is not installed".into());
        }
        let iperf = |node: &Node, words: &str| {
            let words = words.split_whitespace();
            Proc::spawn(lab.inside(node, Who::Caller, Path::new("/usr/bin/iperf3"), words))
        };
        let server = iperf(to, &format!("-s -1 -p {port}"));
        wait_for_port(&server, "tcp", port)?;
        let busy = busy_seconds()?;
        let reverse = if reverse { "-R" } else { "" };
        let client = iperf(
            from,
            &format!(
                "-J -c {} -p {port} -t {seconds} -P {streams} {reverse}",
                to.address
            ),
        );
        Ok(Self {
            client,
            server,
            seconds,
            busy,
        })
    }

    /// Waits for the end.
    pub(crate) fn finish(self) -> Result<Tcp> {
        let limit = Duration::from_secs(self.seconds) + PATIENCE;
        let text = self.client.any_output(limit)?;
        let busy = busy_seconds()? - self.busy;
        drop(self.server);
        let report: Value = serde_json::from_str(&text)
            .map_err(|_| "iperf3 said nothing that could be read".to_owned())?;
        if let Some(error) = report["error"].as_str() {
            return Err(format!("iperf3: {error}").into());
        }
        let number = |sum: &str, key: &str| {
            report["end"][sum][key]
                .as_f64()
                .ok_or_else(|| format!("iperf3 reports no {key}"))
        };
        let bytes = number("sum_received", "bytes")?;
        if bytes == 0.0 {
            return Err("nothing arrived".into());
        }
        Ok(Tcp {
            rate: number("sum_received", "bits_per_second")? / 1e9,
            retransmits: number("sum_sent", "retransmits")? / number("sum_sent", "seconds")?,
            effort: busy / (bytes / GIB),
        })
    }
}

/// How long the machine's processors have been busy, in seconds.
fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&at| ticks.get(at)).sum();
    // The unit of this file is 1/100 s on every architecture that Linux runs on today.
    Ok(busy as f64 / 100.0)
}

/// What a UDP run found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Udp {
    /// Datagrams that arrived, a second, in thousands.
    pub(crate) rate: f64,
    /// Datagrams that were offered, a second, in thousands.
    pub(crate) offered: f64,
    /// The share of the offered ones that did not arrive, in percent.
    pub(crate) loss: f64,
}

/// What is offered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Offer {
    /// So many datagrams a second.
    Paced(u64),
    /// As many as one sender can send.
    OneSender,
    /// As many as one sender for each processor can send. What works in the sender's time, as a
    /// veth pair does, would never be offered more than it takes by a single one.
    Overload,
}

/// Sends datagrams of 64 bytes.
pub(crate) fn udp(lab: &Lab, from: &Node, to: &Node, offer: Offer, millis: u64) -> Result<Udp> {
    let (senders, rate) = match offer {
        Offer::Paced(rate) => (1, rate),
        Offer::OneSender => (1, 0),
        Offer::Overload => (
            std::thread::available_parallelism().map_or(1, usize::from),
            0,
        ),
    };
    let limit = Duration::from_millis(millis) + PATIENCE;
    let sink = lab.tool_inside(to, &format!("sink {SINK} {}", millis + 5000));
    wait_for_port(&sink, "udp", SINK)?;
    let flood = format!("flood {}:{SINK} {millis} {rate}", to.address);
    let senders = (0..senders).map(|_| lab.tool_inside(from, &flood));
    let senders: Vec<Proc<'_>> = senders.collect();
    let (mut offered, mut offered_rate) = (0.0, 0.0);
    for sender in senders {
        let sent = json(&sender.output(limit)?)?;
        offered += number(&sent, "sent")?;
        offered_rate += number(&sent, "sent")? / number(&sent, "seconds")? / 1000.0;
    }
    let report = sink.output(limit)?;
    let rate = arrived(&report)?;
    let arrived = number(&json(&report)?, "received")?;
    Ok(Udp {
        rate,
        offered: offered_rate,
        loss: (1.0 - arrived / offered) * 100.0,
    })
}

/// Datagrams of a size that one sender at full speed gets across, a second, in thousands.
pub(crate) fn datagrams(
    lab: &Lab,
    from: &Node,
    to: &Node,
    size: usize,
    millis: u64,
) -> Result<f64> {
    let limit = Duration::from_millis(millis) + PATIENCE;
    let sink = lab.tool_inside(to, &format!("sink {SINK} {}", millis + 5000));
    wait_for_port(&sink, "udp", SINK)?;
    let flood = format!("flood --size {size} {}:{SINK} {millis} 0", to.address);
    lab.tool_inside(from, &flood).output(limit)?;
    arrived(&sink.output(limit)?)
}

/// The same on the way back: the receiver has to send first.
pub(crate) fn datagrams_back(
    lab: &Lab,
    caller: &Node,
    sender: &Node,
    size: usize,
    millis: u64,
) -> Result<f64> {
    let limit = Duration::from_millis(millis) + PATIENCE;
    let pour = lab.tool_inside(sender, &format!("pour --size {size} {SINK} {millis}"));
    wait_for_port(&pour, "udp", SINK)?;
    let call = format!(
        "sink --call {}:{SINK} {SINK} {}",
        sender.address,
        millis + 5000
    );
    let sink = lab.tool_inside(caller, &call).output(limit)?;
    pour.output(limit)?;
    arrived(&sink)
}

/// What a `sink` counted, a second, in thousands.
fn arrived(report: &str) -> Result<f64> {
    let report = json(report)?;
    let count = number(&report, "received")?;
    match count < 2.0 {
        true => Err("nothing arrived".into()),
        false => Ok(count / number(&report, "seconds")? / 1000.0),
    }
}

/// Times round trips of ICMP echo, which the other kernel answers: the middle one and the 99th of
/// 100, in µs.
pub(crate) fn rtt(
    lab: &Lab,
    from: &Node,
    to: &Node,
    millis: u64,
    gap_micros: u64,
) -> Result<(f64, f64)> {
    round_trips(lab, from, to, "", millis, gap_micros)
}

/// The same of UDP, which a process has to answer.
pub(crate) fn rtt_of_processes(
    lab: &Lab,
    from: &Node,
    to: &Node,
    millis: u64,
) -> Result<(f64, f64)> {
    let server = lab.tool_inside(to, &format!("echo {ECHO}"));
    wait_for_port(&server, "udp", ECHO)?;
    round_trips(lab, from, to, &format!("--port {ECHO}"), millis, 0)
}

fn round_trips(
    lab: &Lab,
    from: &Node,
    to: &Node,
    options: &str,
    millis: u64,
    gap_micros: u64,
) -> Result<(f64, f64)> {
    let limit = Duration::from_millis(millis) + PATIENCE;
    let words = format!("rtt {options} {} {millis} 20000 {gap_micros}", to.address);
    let report = json(&lab.tool_inside(from, &words).output(limit)?)?;
    let lost = number(&report, "lost")?;
    let answers = number(&report, "answers")?;
    if answers < 10.0 {
        return Err(format!("{answers} answers, {lost} lost").into());
    }
    Ok((number(&report, "p50")?, number(&report, "p99")?))
}

/// The same beside a TCP stream in the direction of the questions.
pub(crate) fn rtt_under_load(
    lab: &Lab,
    from: &Node,
    to: &Node,
    seconds: u64,
) -> Result<(f64, f64)> {
    let load = TcpRun::start(lab, from, to, 1, seconds + 1, false)?;
    // Past the start of the stream, and over before its end.
    pause(Duration::from_millis(400))?;
    let times = rtt(lab, from, to, seconds * 1000, 1000)?;
    load.finish()?;
    Ok(times)
}

/// The output of a tool.
pub(crate) fn json(text: &str) -> Result<Value> {
    check_interrupted()?;
    Ok(serde_json::from_str(text)?)
}

/// A number of a tool's output.
pub(crate) fn number(value: &Value, key: &str) -> Result<f64> {
    value[key]
        .as_f64()
        .ok_or_else(|| format!("no {key} reported").into())
}
