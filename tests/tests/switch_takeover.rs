//! A switch that another user puts where the first one was: a session that is plugged into the
//! first does not join it.

use std::os::unix::net::UnixStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, Proc, Session, User, need, wait_until};

use crate::status::{link, status};

/// The switch in a directory where everybody may make one.
const SWITCH: &str = "meet/sw";

/// A place where everybody may make a switch, as /tmp is.
fn lab() -> Lab {
    let lab = Lab::new();
    let meet = lab.mkdir("meet");
    lab.command("chmod", ["1777", &meet]).ok();
    lab
}

/// A user's switch, which everybody may use.
fn start<'lab>(lab: &'lab Lab, user: User) -> Proc<'lab> {
    let vnl = lab.vnl("switch", &format!("{SWITCH}[mode=0666]"));
    let switch = lab.vde_plug(["null://", &vnl]).by(user).spawn();
    let ctl = lab.path(&format!("{SWITCH}/ctl"));
    wait_until("the switch", PATIENCE, || UnixStream::connect(&ctl).is_ok());
    switch
}

fn end(switch: Proc<'_>) {
    assert_eq!(switch.terminate().code(), Some(128 + 15));
}

fn has_carrier(session: &Session<'_>) -> bool {
    !session.ok("ip link show vde0").contains("NO-CARRIER")
}

#[track_caller]
fn wait_for_carrier(session: &Session<'_>, is_wanted: bool) {
    let what = format!("carrier: {is_wanted}: {}", session.proc().stderr());
    wait_until(&what, PATIENCE, || has_carrier(session) == is_wanted);
}

/// A session on the switch, with keys behind its directory.
fn member<'lab>(lab: &'lab Lab, options: &[&str], keys: &str) -> Session<'lab> {
    let vnl = lab.vnl("vde", &format!("{SWITCH}{keys}"));
    let member = lab.vdens(options).args(["--up", &vnl, "sh"]).session();
    wait_for_carrier(&member, true);
    member
}

/// Waits until the session has refused a switch, naming both owners; and it is without carrier.
#[track_caller]
fn wait_for_refusal(session: &Session<'_>, now: &str, before: &str) {
    let words = format!("it is user {now}'s now, and was user {before}'s");
    wait_until(&words, PATIENCE, || {
        session.proc().stderr().contains(&words)
    });
    assert!(!has_carrier(session));
}

#[test]
fn another_users_switch_in_its_place_is_not_joined() {
    need!("root");
    let (own, other) = (User::ordinary(), User::other());
    for options in [&[][..], &["--no-panel"]] {
        let lab = lab();
        let first = start(&lab, own.clone());
        let session = member(&lab, options, "");
        end(first);
        wait_for_carrier(&session, false);
        let second = start(&lab, other.clone());
        wait_for_refusal(&session, &other.name, &own.name);
        let told = link(&status(&lab), session.proc().pid().cast_unsigned(), 0);
        let reason = told["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("[user="), "{told:#}");
        let again = format!("{}'s now", other.name);
        let count = || session.proc().stderr().matches(&again).count();
        assert_eq!(
            count(),
            1,
            "it is tried again all the time, and logged once"
        );
        // The next worker knows as well.
        let worker = told["worker"].as_i64().and_then(|pid| pid.try_into().ok());
        kill(Pid::from_raw(worker.unwrap()), Signal::SIGKILL).unwrap();
        wait_until("the next worker's refusal", PATIENCE, || count() > 1);
        assert!(!has_carrier(&session));
        end(second);
        // The first one's comes back.
        let third = start(&lab, own.clone());
        wait_for_carrier(&session, true);
        drop(session);
        end(third);
    }
}

/// Where the switch was somebody else's to begin with, it may become root's or the session's own
/// user's, and no third one's; as often as they like.
#[test]
fn root_and_oneself_are_no_strangers() {
    need!("root");
    let (own, other) = (User::ordinary(), User::other());
    let lab = lab();
    let first = start(&lab, other.clone());
    let session = member(&lab, &[], "");
    let mut switch = first;
    for user in [User::root(), own, other] {
        end(switch);
        wait_for_carrier(&session, false);
        switch = start(&lab, user);
        wait_for_carrier(&session, true);
    }
    drop(session);
    end(switch);
}

#[test]
fn a_key_names_the_user_or_lets_everybody() {
    need!("root");
    let (own, other) = (User::ordinary(), User::other());
    let lab = lab();
    let join = |keys: String| {
        let vnl = lab.vnl("vde", &format!("{SWITCH}[{keys}]"));
        lab.vdens([&vnl, "true"])
    };
    let first = start(&lab, other.clone());
    join(format!("user={}", own.name)).refused(&[
        SWITCH,
        &format!("user {}'s", other.name),
        &format!("user={}", own.name),
    ]);
    join("user=nobody-of-that-name".to_owned()).refused(&["nobody-of-that-name"]);
    join(format!("user={}", other.name)).ok();
    join(format!("user={}", other.uid)).ok();
    let vde = lab.vnl("vde", &format!("{SWITCH}[user={}]", own.uid));
    lab.vde_plug([&vde, "null://"]).refused(&[&other.name]);
    end(first);

    let mut switch = start(&lab, own.clone());
    let (any, named) = (
        member(&lab, &[], "[user=any]"),
        member(&lab, &[], &format!("[user={}]", own.name)),
    );
    end(switch);
    wait_for_carrier(&named, false);
    switch = start(&lab, other);
    wait_for_carrier(&any, true);
    wait_until("it is refused", PATIENCE, || {
        named.proc().stderr().contains("[user=")
    });
    assert!(!has_carrier(&named));
    drop((any, named));
    end(switch);
}

#[test]
fn a_plug_does_not_join_it_either() {
    need!("root", "vde_switch");
    let (own, other) = (User::ordinary(), User::other());
    let lab = lab();
    let first = start(&lab, own.clone());
    let (at, far) = (lab.vnl("vde", SWITCH), lab.vnl("switch", "far"));
    let plug = lab.vde_plug([&at, &far]).spawn();
    lab.wait_for("far/ctl");
    end(first);
    wait_until("the plug notices", PATIENCE, || {
        plug.stderr().contains("trying again")
    });
    // A legacy switch is one like any other.
    lab.expect(SWITCH);
    let (legacy, stdin) = lab
        .debian("vde_switch", ["-s", &lab.path(SWITCH), "-m", "0666"])
        .by(other.clone())
        .spawn_piped();
    let words = format!("user {}'s now, and was user {}'s", other.name, own.name);
    wait_until(&words, PATIENCE, || plug.stderr().contains(&words));
    drop(stdin);
    legacy.wait(PATIENCE);
    plug.terminate();
}

/// Of a cable it is only told: its mode says who may join.
#[test]
fn another_users_end_of_a_cable_is_reported() {
    need!("root");
    let (own, other) = (User::ordinary(), User::other());
    let lab = lab();
    let vnl = lab.vnl("ptp", "meet/p[mode=0777]");
    let session = lab.vdens([&vnl, "sh"]).session();
    session.ok("ip link set vde0 up");
    for (user, is_reported) in [(own.clone(), false), (other.clone(), true)] {
        let far = lab.vde_plug([&vnl, "null://"]).by(user).spawn();
        wait_for_carrier(&session, true);
        let words = format!("user {}'s now, and was user {}'s", other.name, own.name);
        let said = || session.proc().stderr().contains(&words);
        wait_until(&words, PATIENCE, || said() == is_reported);
        end(far);
        wait_for_carrier(&session, false);
    }
}
