//! VNLs in VNLs: as deep as is allowed they work at little cost, and deeper ones are refused before
//! anything is opened.

use vdens_tests::{Lab, need};

use crate::hostile_clients::ticks;

/// `vlan://1` around itself, `levels` of them in all, around `inner`.
fn nested(levels: usize, inner: &str) -> String {
    format!(
        "{}{inner}{}",
        "vlan://1{".repeat(levels),
        "}".repeat(levels)
    )
}

#[test]
fn eight_levels_cost_little() {
    need!("ping");
    let lab = Lab::new();
    let (deep, flat) = (nested(8, &lab.vnl("ptp", "p")), lab.vnl("ptp", "q"));
    let plug = lab.vde_plug([&deep, &flat]).spawn();
    let a = lab.vdens(["--addr", "10.0.0.1/24", &deep, "sh"]).session();
    let b = lab.vdens(["--addr", "10.0.0.2/24", &flat, "sh"]).session();
    a.ping("10.0.0.2");
    let before = ticks(&plug);
    b.ok("ping -q -c 200 -i 0.01 10.0.0.1");
    let used = ticks(&plug) - before;
    // Were the innermost link asked a power of the depth, this would take a processor for two
    // seconds.
    assert!(used < 30, "{used} ticks for 200 pings");
    a.send_file(&b, "10.0.0.2", 8);
}

#[test]
fn nine_levels_are_refused() {
    let lab = Lab::new();
    let words = ["more than 8 VNLs are nested", "vde_plug"];
    let cable = lab.vnl("ptp", "p");
    for inner in ["null://", &cable] {
        lab.vdens([&nested(8, inner), "true"]).ok();
        lab.vdens([&nested(9, inner), "true"]).refused(&words);
        lab.vde_plug(["null://", &nested(9, inner)]).refused(&words);
    }
    // A path in the braces is a VNL as well, and so is one in a file, or one with words that a
    // shell would quote.
    lab.vdens([&nested(9, &lab.path("sw")), "true"])
        .refused(&words);
    let file = lab.write("vnl", nested(40, "null://"));
    lab.vdens([&file, "true"]).refused(&words);
    let quoted = nested(9, "vde://'/a {b'[3]");
    lab.vdens([&quoted, "true"]).refused(&words);
}
