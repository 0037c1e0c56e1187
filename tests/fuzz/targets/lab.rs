//! Lab files.

use std::path::Path;

use fastrand::Rng;

use super::settings::escaped;
use super::{Target, pick};

const FILE: &str = "/x.toml";

/// What lab files are made of, so that what belongs together often meets.
const PIECES: [&str; 44] = [
    "[nodes.r1]\n",
    "[nodes.r2]\n",
    "[nodes.h]\ncount = 3\n",
    "[nodes.g]\ncount = 3\n",
    "[nodes.all]\nafter = [\"*\"]\n",
    "[nodes.all]\ncount = 4096\n",
    "after = [\"r*\"]\n",
    "after = ['h{n-1}']\n",
    "exec = [\"echo {n} ${n} {a}\"]\n",
    "services = ['sleep {n*n}']\n",
    "hostname = \"h-{n}\"\n",
    "sysctl = { \"net.ipv4.ip_forward\" = 1, \"net.ipv4.conf.eth0.rp_filter\" = '2' }\n",
    "root = true\n",
    "[[links]]\nends = ['r1:eth0=10.0.0.1/24', 'r2:eth0=10.0.0.2/24']\n",
    "[[links]]\nends = ['h*:up=10.0.{n}.0/30', 'r1:down{n}=10.0.{n}.0/30']\n",
    "[[links]]\nends = ['h*:side', 'g*:side']\n",
    "[[links]]\nends = ['vxlan://192.0.2.7/vni=5', 'r2:eth9']\n",
    "[[links]]\ncount = 2\nends = ['h{n}:r=fd00:{n}::/64', 'h{n+1}:l=fd00:{n}::/64']\n",
    "[[links]]\nends = [{ node = 'r1', interface = 'e', mac = '02:00:00:00:00:01' }, 'r2:e']\n",
    "both = { delay = '20ms', loss = '1%' }\n",
    "tx = { jitter = '1ms', distribution = '/etc/passwd', delay = '1s', ordered = true }\n",
    "rx = { seed = 7 }\n",
    "mtu = 1400\n",
    "[[switches]]\nname = 'lan'\nports = ['r1:eth1=10.1.0.1/24', 'h*:eth0=10.1.0.0/24']\n",
    "[[switches]]\nname = 'l{n}'\ncount = 2\nports = ['g{n}:e', 'ptp:///{n}']\n",
    "uplink = 'nat://'\n",
    "[[tests]]\nnode = 'h*'\nrun = 'ping 10.0.0.{n}'\n",
    "name = 'x'\n",
    "within = '2m'\n",
    "expect = 1\n",
    "{n}",
    "{n%2}",
    "{(n",
    "=",
    "\"",
    "'",
    "[",
    "]",
    "*",
    ":",
    "/",
    ",",
    "9223372036854775807",
    "é",
];

pub(crate) struct LabFile;

impl Target for LabFile {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        for _ in 0..random.usize(..12) {
            // Mostly whole lines, in the order of a file.
            let piece = match random.u8(..8) {
                0 => pick(random, &PIECES),
                _ => pick(random, &PIECES[..30]),
            };
            input.extend(piece.as_bytes());
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(input);
        vdens::fuzz::lab(Path::new(FILE), &text)?;
        // The input as a command.
        let command: String = text
            .chars()
            .take(40)
            .filter(|c| !"{\0".contains(*c))
            .collect();
        let command = format!("echo {command}");
        let written = format!("[nodes.a]\nexec = [\"{}\"]\n", escaped(&command));
        vdens::fuzz::lab_command(&written, &command)
    }
}
