//! The console of `vde_switch`: what a client says, and what the switch answers.

use fastrand::Rng;

use super::{Target, pick};

/// What lines are made of.
const PIECES: [&str; 40] = [
    "help",
    "showinfo",
    "ds/showinfo",
    "port/print",
    "port/allprint",
    "port/setvlan",
    "port/setuser",
    "port/epclose",
    "port/setlock",
    "port/setstorm",
    "port/createauto",
    "vlan/print",
    "vlan/allprint",
    "vlan/offer",
    "hash/print",
    "hash/find",
    "hash/setsize",
    "fstp/print",
    "fstp/setedge",
    "debug/add",
    "debug/del",
    "debug/list",
    "plugin/list",
    "logout",
    "shutdown",
    "02:00:00:00:00:01",
    "NONE",
    "OFF",
    "0",
    "1",
    "4095",
    "65536",
    "-1",
    "root",
    "#",
    "\r",
    "\0",
    ".",
    "é",
    "/",
];

/// What answers are made of.
const ANSWERS: [&str; 6] = [
    r#""ports":{"items":[{"number":1,"client":"x\n.\n1000 y","uid":0,"tagged":[1]}],"from":null}"#,
    r#""vlans":{"items":[{"vlan":0,"untagged":[1,2],"tagged":[1]}],"from":7}"#,
    r#""stations":{"items":[{"vlan":7,"mac":"02:00:00:00:00:01","age":null}],"from":null}"#,
    r#""stp":{"enabled":true,"root_port":7,"ports":[{"port":1,"role":"root","state":"learning","cost":1,"edge":true}]}"#,
    r#""switch":{"directory":"/\u001b[2J","mode":384,"processes":[1,2],"uptime":1,"mac":"02:00:00:00:00:01","kind":"hub","num_ports":1,"used_ports":1,"vlans":0,"expiry":1,"stations":0,"capacity":1,"storm":"off","stp":true,"priority":0,"panel":""}"#,
    r#""created":7"#,
];

/// Where the answer begins.
const BETWEEN: u8 = 0xff;

pub(crate) struct Consoles;

impl Target for Consoles {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        input.push(random.u8(..));
        for _ in 0..random.usize(..20) {
            input.extend(pick(random, &PIECES).as_bytes());
            input.push(*pick(random, b" \n \n\t"));
        }
        if random.u8(..50) == 0 {
            input.extend([b'x'].repeat(random.usize(..3000)));
        }
        input.push(BETWEEN);
        input.push(b'{');
        for number in 0..random.usize(1..4) {
            if number > 0 {
                input.push(b',');
            }
            input.extend(pick(random, &ANSWERS).as_bytes());
        }
        input.push(b'}');
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let Some((piece, input)) = input.split_first() else {
            return Ok(());
        };
        let mut parts = input.splitn(2, |byte| *byte == BETWEEN);
        let (said, answer) = (parts.next(), parts.next());
        vdens::fuzz::console(
            said.unwrap_or_default(),
            usize::from(*piece),
            answer.unwrap_or_default(),
        )
    }
}
