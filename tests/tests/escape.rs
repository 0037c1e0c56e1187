//! A command cannot leave its namespace. Its attempts on its supervisor, a sibling, the panel, the
//! host's network and the kernel's settings are refused, and the victim works as before.
//!
//! Each attempt is also made on a victim where it is allowed. So a test cannot pass because the
//! attempt itself is wrong.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use vdens_tests::{Lab, PATIENCE, Session, User, becomes_true, copy_programs, need, wait_until};

/// Two namespaces that ping each other, on the panel if that is wanted.
struct Scene<'lab> {
    lab: &'lab Lab,
    /// The attacker.
    a: Session<'lab>,
    /// Its sibling.
    b: Session<'lab>,
    script: String,
}

impl<'lab> Scene<'lab> {
    fn new(lab: &'lab Lab, options: &[&str]) -> Self {
        let vnl = lab.vnl("ptp", "p");
        let start = |address: &str| {
            let vdens = lab.vdens(options).args(["--addr", address, &vnl, "sh"]);
            let session = vdens.session();
            session.ok(":");
            session
        };
        let (a, b) = (start("10.0.0.1/24"), start("10.0.0.2/24"));
        a.ping("10.0.0.2");
        let script = lab.write("escape.py", include_str!("escape.py"));
        Self { lab, a, b, script }
    }

    /// Runs the script inside, with `words` in front of it. Returns the attempts and their
    /// outcomes.
    #[track_caller]
    fn attempts(&self, words: &str, args: &str) -> Vec<(String, String)> {
        let said = self
            .a
            .ok(&format!("{words} python3 {} {args}", self.script));
        let lines = said.lines().filter_map(|line| line.split_once(' '));
        lines.map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
    }

    /// Every attempt is refused.
    #[track_caller]
    fn is_refused(&self, words: &str, args: &str) {
        let attempts = self.attempts(words, args);
        assert!(attempts.len() > 5, "{args}: {attempts:?}");
        for (attempt, outcome) in &attempts {
            assert!(
                ["EPERM", "EACCES"].contains(&&**outcome),
                "{words} {args}: {attempt}: {outcome}; {attempts:?}"
            );
        }
    }

    /// The attempts succeed on a child of the attacker's own, but for those in `except`.
    #[track_caller]
    fn is_allowed(&self, words: &str, args: &str, except: &[(&str, &str)]) {
        for (attempt, outcome) in self.attempts(words, args) {
            let expected = except.iter().find(|(name, _)| *name == attempt);
            let expected = expected.map_or("ok", |(_, outcome)| outcome);
            assert_eq!(outcome, expected, "{args}: {attempt}");
        }
    }

    /// The processes of a session: its supervisor, its command, and its workers.
    fn processes(&self, session: &Session<'_>) -> Vec<i32> {
        let supervisor = session.proc().pid();
        let children = self.lab.sh(&format!("pgrep -P {supervisor}")).ok();
        let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
        let all: Vec<i32> = [supervisor].into_iter().chain(children).collect();
        assert!(all.len() >= 3, "{all:?}");
        all
    }

    fn command(&self, session: &Session<'_>) -> i32 {
        session.ok("echo $$").trim().parse().unwrap()
    }

    /// The interfaces of a session.
    fn interfaces(session: &Session<'_>) -> String {
        session.ok("ip -o -4 addr; ip -o link")
    }
}

fn join(pids: &[i32]) -> String {
    let words: Vec<String> = pids.iter().map(ToString::to_string).collect();
    words.join(" ")
}

/// With the panel and without it; with the command's capabilities, and with all those of a
/// namespace below.
#[test]
fn other_processes_of_the_user_are_out_of_reach() {
    need!("python3", "unshare");
    for options in [[].as_slice(), &["--no-panel"], &["-s"]] {
        let lab = Lab::new();
        let scene = Scene::new(&lab, options);
        // Nothing is at the address that is read.
        let except = ("process_vm_readv", "EFAULT");
        scene.is_allowed("unshare -Ur", "processes child", &[except]);
        if options.is_empty() {
            // Leaving one's own network namespace needs CAP_SYS_ADMIN.
            scene.is_allowed("", "processes child", &[except, ("setns-net", "EPERM")]);
        }
        let (own, command) = (scene.processes(&scene.a), scene.command(&scene.a));
        let own = own.into_iter().filter(|pid| *pid != command);
        let victims: Vec<i32> = own.chain(scene.processes(&scene.b)).collect();
        for victim in &victims {
            for words in ["", "unshare -Ur"] {
                scene.is_refused(words, &format!("processes {victim}"));
            }
        }
        scene.a.ping("10.0.0.2");
        let now = [scene.processes(&scene.a), scene.processes(&scene.b)].concat();
        assert!(victims.iter().all(|victim| now.contains(victim)), "{now:?}");
    }
}

/// The panel's interfaces, as root sees them.
fn on_the_panel(scene: &Scene<'_>) -> String {
    let supervisor = scene.a.proc().pid();
    // The supervisor holds the panel's network namespace; its own is another.
    let script = format!(
        "for fd in /proc/{supervisor}/fd/*; do
             case $(readlink $fd) in net:*) exec nsenter --net=$fd ip -o link;; esac
         done; exit 1"
    );
    let links = scene.lab.sh(&script).by(User::root()).ok();
    // A bridge's operational state settles a while after it was made.
    links.replace("state UNKNOWN", "state UP")
}

/// Interfaces cannot be made in, moved into, listed or removed from a sibling's, the host's and the
/// panel's network.
#[test]
fn other_networks_are_out_of_reach() {
    need!("root", "python3", "unshare");
    let lab = Lab::new();
    let scene = Scene::new(&lab, &[]);
    scene.is_allowed("", "network child", &[("on-top", "ENOTSUP")]);
    let (sibling, panel) = (Scene::interfaces(&scene.b), on_the_panel(&scene));
    let is_port = |word: &str| word.starts_with('p') && word.contains('@');
    assert!(panel.split_whitespace().any(is_port), "{panel}");
    let host = || lab.command("ip", ["-o", "link"]).ok();
    let host_before = host();
    let targets = [scene.command(&scene.b), scene.a.proc().pid(), 1];
    for words in ["", "unshare -Urn"] {
        scene.is_refused(words, &format!("network {}", join(&targets)));
    }
    scene.is_refused("", "panel vde0");
    assert_eq!(Scene::interfaces(&scene.b), sibling);
    assert_eq!(on_the_panel(&scene), panel);
    // Other tests make interfaces there meanwhile, but none with this name.
    assert!(!host().contains("esc-"), "{host_before} {}", host());
    scene.a.ping("10.0.0.2");
}

/// A netlink socket can ask for the events of all namespaces that have a number (nsid) in its own.
/// The panel has one in each member.
#[test]
fn events_of_the_panel_are_not_received() {
    need!("python3", "unshare");
    let lab = Lab::new();
    let scene = Scene::new(&lab, &[]);
    scene.a.ok(&format!(
        "mkfifo $HOME/go; (python3 {} monitor <$HOME/go >$HOME/heard 2>&1) & m=$!; exec 9>$HOME/go",
        scene.script
    ));
    wait_until("the monitor", PATIENCE, || {
        scene.a.ok("cat $HOME/heard").contains("ready")
    });
    // Two ports and a cable are made there, and go.
    let vnl = lab.vnl("ptp", "q");
    let c = lab.vdens(["-v", "--addr", "10.1.0.1/24", &vnl, "sh"]);
    let c = c.session();
    c.ok(":");
    let d = lab.vdens(["--addr", "10.1.0.2/24", &vnl, "ping", "-c1", "-w15"]);
    d.args(["10.1.0.1"]).ok();
    wait_until("they are on the panel", PATIENCE, || {
        c.proc().stderr().contains("go through the kernel")
    });
    c.exit(0);
    let heard = scene.a.ok("exec 9>&-; wait $m; cat $HOME/heard");
    let names = heard.lines().find_map(|line| line.strip_prefix("heard"));
    let names: Vec<&str> = names.unwrap().split_whitespace().collect();
    assert!(names.contains(&"esc-last"), "{heard}");
    let allowed = |name: &&str| name.starts_with("esc-") || ["vde0", "lo"].contains(name);
    assert!(names.iter().all(allowed), "{heard}");
}

#[test]
fn only_the_networks_settings_can_be_written() {
    need!("python3");
    for options in [[].as_slice(), &["-s"]] {
        let lab = Lab::new();
        let scene = Scene::new(&lab, options);
        let said = scene.a.ok(&format!("python3 {} sysctls", scene.script));
        // Every user can open ns_last_pid, also outside: the kernel checks the write instead.
        let outside = lab.command("python3", [&*scene.script, "sysctls"]).ok();
        let others = |said: &str| -> Vec<String> {
            let lines = said.lines().filter(|line| !line.starts_with("net: "));
            lines
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(others(&said), others(&outside));
        let count = |said: &str, top: &str| -> (u32, u32) {
            let line = said.lines().find_map(|line| line.strip_prefix(top));
            let (writable, all) = line.unwrap().split_once(" of ").unwrap();
            (writable.parse().unwrap(), all.parse().unwrap())
        };
        assert!(
            count(&said, "net: ").0 > 100 && count(&outside, "net: ").0 == 0,
            "{said}{outside}"
        );
        for top in ["kernel: ", "vm: ", "fs: "] {
            let (writable, all) = count(&said, top);
            assert!(writable <= 1 && all > 10, "{said}");
        }
        let (status, text) = scene.a.run("echo 100 >/proc/sys/kernel/ns_last_pid");
        assert_ne!(status, 0, "{text}");
        // The namespace's own, and nobody else's.
        let setting = "/proc/sys/net/ipv4/ip_forward";
        let (host, sibling) = (
            fs::read(setting).unwrap(),
            scene.b.ok("cat /proc/sys/net/ipv4/ip_forward"),
        );
        let new = 1 - sibling.trim().parse::<u8>().unwrap();
        let now = scene
            .a
            .ok(&format!("echo {new} >{setting} && cat {setting}"));
        assert_eq!(now.trim(), new.to_string());
        assert_eq!(scene.b.ok(&format!("cat {setting}")), sibling);
        assert_eq!(fs::read(setting).unwrap(), host);
    }
}

/// Without `-s` a command cannot mount. With it, nothing outside the namespace sees its mounts.
#[test]
fn mounts_stay_inside() {
    need!("unshare");
    let lab = Lab::new();
    let place = lab.mkdir("place");
    let marked = lab.mkdir("marked");
    lab.write("marked/mark", "");
    let bind = format!("mount --bind {marked} {place} && test -e {place}/mark");
    let is_outside = || fs::exists(format!("{place}/mark")).unwrap();
    for (options, may_mount) in [
        ([].as_slice(), false),
        (&["-R", "10.0.0.9"], false),
        (&["-s"], true),
        (&["-s", "-R", "10.0.0.9"], true),
    ] {
        let scene = Scene::new(&lab, options);
        let (status, text) = scene.a.run(&bind);
        assert_eq!(status == 0, may_mount, "{options:?}: {text}");
        assert!(!is_outside(), "{options:?}");
        scene.b.ok(&format!("test ! -e {place}/mark"));
        // A namespace below can mount, and only it sees that.
        scene.a.ok(&format!("unshare -Urm sh -c '{bind}'"));
        assert!(!is_outside(), "{options:?}");
        for (attempt, why) in [
            // To see what is below a mount of the host's.
            ("umount /proc", "not mounted|superuser"),
            ("umount -l /dev", "not mounted|superuser"),
            // The host's processes, and its file systems that are not mounted.
            (
                &format!("mount -t proc proc {place}"),
                "permission denied|superuser",
            ),
            (
                &format!("mount -t ext4 /dev/null {place}"),
                "permission denied|superuser",
            ),
            (
                &format!("mount -t debugfs none {place}"),
                "permission denied|superuser",
            ),
            ("chroot / true", "Operation not permitted"),
            (
                &format!("mknod {place}/null c 1 3"),
                "Operation not permitted",
            ),
        ] {
            let (status, text) = scene.a.run(attempt);
            let is_refused = why.split('|').any(|why| text.contains(why));
            assert!(status != 0 && is_refused, "{options:?}: {attempt}: {text}");
        }
        // Mounts do not propagate outside, even if the command asks for that.
        let (status, text) = scene
            .a
            .run(&format!("umount {place}; mount --make-rshared / && {bind}"));
        assert_eq!(status == 0, may_mount, "{options:?}: {text}");
        assert!(!is_outside(), "{options:?}");
        scene.a.ping("10.0.0.2");
    }
}

/// The kernel ignores a setuid bit inside, because the namespace does not map the file's owner.
#[test]
fn setuid_programs_give_nothing() {
    need!("root");
    let lab = Lab::new();
    let file = lab.aside("setuid");
    copy_programs(&["/usr/bin/id"], &file);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
    let file = file.display().to_string();
    let own = lab.user().uid.to_string();
    assert_eq!(lab.command(&file, ["-u"]).ok().trim(), "0");
    for options in [[].as_slice(), &["--no-panel"], &["-s"]] {
        let vnl = lab.vnl("ptp", "p");
        let inside = lab.vdens(options).args([&*vnl, &*file, "-u"]).ok();
        assert_eq!(inside.trim(), own, "{options:?}");
    }
}

/// A command can signal processes of its user, its supervisor among them. That ends its own
/// session, and no other.
#[test]
fn a_signal_to_the_supervisor_ends_the_commands_own_session() {
    let lab = Lab::new();
    let scene = Scene::new(&lab, &[]);
    let supervisor = scene.a.proc().pid();
    scene.a.start(&format!("kill -TERM {supervisor}"));
    assert!(becomes_true(PATIENCE, || !scene.a.proc().is_running()));
    wait_until("no carrier without a peer", PATIENCE, || {
        scene.b.ok("ip link show vde0").contains("NO-CARRIER")
    });
    scene.b.ok("ping -c 1 -W 20 10.0.0.2");
}
