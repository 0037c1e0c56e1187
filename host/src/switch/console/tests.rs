//! The console over a switch that is made up.

use std::cell::RefCell;
use std::fs;

use vdens_switch_control::{Answer, General, Kind, Mac, Page, Request, StormLimit, StpReport};

use super::*;

/// A switch of four ports, which accepts all changes but those of port 9.
#[derive(Default)]
struct Switch(RefCell<Vec<Change>>);

impl Ask for Switch {
    fn ask(&self, request: &Request) -> Result<Answer> {
        let mut answer = Answer::default();
        match request {
            Request::Show => answer.switch = Some(general()),
            Request::Ports { from, .. } => {
                let port = |number| PortReport {
                    number,
                    client: (number < 3).then(|| "x".to_owned()),
                    untagged: Some(5),
                    tagged: vec![6],
                    ..PortReport::default()
                };
                // In parts of one.
                answer.ports = Some(Page {
                    items: vec![port(*from)],
                    from: (*from < 3).then_some(from + 1),
                });
            }
            Request::Vlans { .. } => answer.vlans = Some(Page::default()),
            Request::Stations { .. } => answer.stations = Some(Page::default()),
            Request::Stp { .. } => answer.stp = Some(StpReport::default()),
            Request::Events { .. } => {}
            Request::Change(changes) => {
                if let Some(Change::Port(9, _)) = changes.first() {
                    return Err(failed(Errno::ENXIO, "there is no\nport 9"));
                }
                self.0.borrow_mut().extend(changes.iter().cloned());
                answer.created = Some(4);
            }
        }
        Ok(answer)
    }
}

fn general() -> General {
    General {
        directory: "/tmp/sw".into(),
        mode: 0o600,
        processes: [1, 2],
        uptime: 7,
        mac: Mac::default(),
        kind: Kind::Switch,
        num_ports: 32,
        used_ports: 2,
        vlans: 0,
        expiry: 120,
        stations: 0,
        capacity: 1000,
        storm: StormLimit::Off,
        stp: false,
        priority: 32768,
        times: vdens_switch_control::StpTimes::default(),
        panel: String::new(),
    }
}

fn said(line: &str) -> String {
    match Console::default().execute(line, &mut Watched::default(), &Switch::default()) {
        Outcome::Reply(reply) => reply,
        outcome => format!("{outcome:?}"),
    }
}

#[test]
fn replies_have_the_form_that_scripts_know() {
    assert_eq!(said(""), "Blank");
    assert_eq!(said("logout now"), "Logout");
    assert_eq!(said("shutdown"), "Shutdown");
    assert_eq!(said("version"), "1038 Function not implemented\n");
    assert_eq!(said("vlan/create x"), "1022 Invalid argument\n");
    assert_eq!(said("vlan/create 7"), "1000 Success\n");
    assert_eq!(
        said("ds/showinfo"),
        "0000 DATA END WITH '.'\nctl dir /tmp/sw\nstd mode 0600\n.\n1000 Success\n"
    );
    assert_eq!(
        said("port/setvlan 9 7"),
        "1006 No such device or address: there is no\\nport 9\n"
    );
    let nothing = "0000 DATA END WITH '.'\n.\n";
    assert_eq!(
        said("hash/find x"),
        format!("{nothing}1022 Invalid argument\n")
    );
    assert_eq!(
        said("hash/find 2:0:0:0:0:7"),
        format!("{nothing}1019 No such device\n")
    );
    assert_eq!(said("fstp/setfstp 1"), format!("{nothing}1000 Success\n"));
    assert!(said("plugin/list").ends_with("\n.\n1002 No such file or directory\n"));
    assert_eq!(
        said("plugin/add x"),
        "1095 Operation not supported on transport endpoint\n"
    );
    assert_eq!(
        said("hash/setsize 1001"),
        "1022 Invalid argument: there is room for 1000\n"
    );
    assert!(said("port/setuser 3 no_such_user").starts_with("1022 Invalid argument: "));
    assert_eq!(
        said("port/epclose 3 4"),
        "1006 No such device or address: port 3 has no connection 4\n"
    );
}

#[test]
fn lists_come_whole_and_without_a_side_that_leads_nowhere() {
    let ports = said("port/allprint");
    let numbers: Vec<_> = ports
        .lines()
        .filter_map(|line| line.strip_prefix("Port "))
        .collect();
    assert_eq!(numbers.len(), 3, "{ports}");
    assert!(said("port/print 7").ends_with(".\n1006 No such device or address\n"));
    assert!(said("port/print 0").ends_with(".\n1006 No such device or address\n"));
}

#[test]
fn a_port_is_removed_from_a_vlan_that_is_tagged_there() {
    let switch = Switch::default();
    let said = |line: &str| {
        let mut watched = Watched::default();
        match Console::default().execute(line, &mut watched, &switch) {
            Outcome::Reply(reply) => reply,
            outcome => format!("{outcome:?}"),
        }
    };
    // Port 2 has VLAN 5 untagged and VLAN 6 tagged.
    let in_use = "1098 Address already in use: VLAN 5 is untagged on port 2\n";
    assert_eq!(said("vlan/delport 5 2"), in_use);
    assert_eq!(said("vlan/delport 0 2"), "1000 Success\n");
    assert!(said("vlan/delport 7 2").starts_with("1006 "));
    assert!(switch.0.borrow().is_empty());
    assert_eq!(said("vlan/delport 6 2"), "1000 Success\n");
    let removed = [Change::Port(2, PortChange::RemoveTagged(6))];
    assert_eq!(*switch.0.borrow(), removed);
}

#[test]
fn a_port_that_is_made_is_for_those_who_ask_for_it() {
    let switch = Switch::default();
    let console = Console::default();
    for line in ["port/create 3", "port/createauto"] {
        console.execute(line, &mut Watched::default(), &switch);
    }
    let reserved = |port| Change::Port(port, PortChange::Allocatable(false));
    let made = [
        Change::CreatePort(3),
        reserved(3),
        Change::CreateAnyPort,
        reserved(4),
    ];
    assert_eq!(*switch.0.borrow(), made);
}

#[test]
fn events_are_chosen_by_their_path() {
    let mut watched = Watched::default();
    assert_eq!(watched.turn("port", true), Ok(()));
    assert_eq!(watched.turn("port/+", true), Err(Errno::EEXIST));
    assert_eq!(watched.turn("x", true), Err(Errno::EINVAL));
    assert!(watched.contains("port/ep/-") && !watched.contains("hash/+"));
    assert_eq!(watched.turn("", true), Ok(()));
    assert_eq!(watched.turn("hash", false), Ok(()));
    assert_eq!(watched.turn("hash", false), Err(Errno::ENOENT));
    let list = print::categories("", &|category| watched.contains(category));
    assert!(list.contains("hash/+                 011 OFF "), "{list}");
    assert!(list.contains("port/+                 021 ON  "), "{list}");
}

#[test]
fn files_of_commands() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rc");
    let name = path.display();
    let switch = Switch::default();
    let mut watched = Watched::default();
    let mut load = || Console::default().execute(&format!("load {name}"), &mut watched, &switch);
    fs::write(
        &path,
        "# ports\n\nport/setvlan 9 1\nvlan/create 7\nlogout\nshutdown\n",
    )
    .unwrap();
    let text = format!(
        "vde[{name}]: line 3\n1006 No such device or address: there is no\\nport 9\n\
         vde[{name}]: line 4\n1000 Success\n1000 Success\n"
    );
    assert_eq!(load(), Outcome::Reply(text));
    assert!(!Console::default().start(&path, &switch).unwrap());
    fs::write(&path, "vlan/create 7\nshutdown\n").unwrap();
    assert_eq!(load(), Outcome::Shutdown);
    assert!(Console::default().start(&path, &switch).unwrap());
    fs::write(&path, format!("load {name}")).unwrap();
    assert!(matches!(load(), Outcome::Reply(reply) if reply.contains("1040 ")));
    fs::remove_file(&path).unwrap();
    assert!(matches!(load(), Outcome::Reply(reply) if reply.starts_with("1002 No such file")));
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(load(), Outcome::Reply(reply) if reply.starts_with("1022 ")));
}
