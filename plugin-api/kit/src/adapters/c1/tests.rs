//! What a plugin or a host that was written by hand can get wrong.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::time::Duration;

use vdens_plugin_c as c;

use super::incoming::{RemoteHost, bind};
use super::outgoing::export_services;
use super::{buffered, c_string, fill, panel, plugin};
use crate::tap::Tap;
use crate::{
    Batch, Bridge, BridgePort, Capabilities, Error, ErrorKind, Host, HostPort, HostServices, Link,
    OpenOptions, OpenRequest, PanelAddress, Plugin, PortVlans, Result, RxBatch, State, Status,
    TxBatch, VlanBridge,
};

/// A host that has everything, and says what it was asked.
struct Everything(Mutex<Vec<String>>);

static HOST: Everything = Everything(Mutex::new(Vec::new()));

impl Everything {
    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl HostServices for Everything {
    fn open(&'static self, vnl: &str) -> Result<Box<dyn Link>> {
        match vnl {
            "null://" => Ok(Box::new(Null(File::open("/dev/null").unwrap()))),
            _ => Err(Error::new(ErrorKind::NotFound, format!("no {vnl}")).hint("two\nlines")),
        }
    }
    fn port(&self) -> HostPort {
        HostPort {
            interface: "vde0".into(),
            mtu: 1400,
            panel_address: Some(PanelAddress {
                panel: 7,
                place: "abcdefghijklmn".into(),
            }),
        }
    }
    fn plug(&self, peer: &str) -> Result<()> {
        self.note(format!("plug {peer}"));
        Ok(())
    }
    fn attach(&self, bridge: &PanelAddress) -> Result<()> {
        self.note(format!("attach {} {}", bridge.panel, bridge.place));
        Err(Error::usage("é".repeat(1500)))
    }
    fn bridge(&self, expiry: Duration) -> Result<Bridge> {
        self.note(format!("bridge {}", expiry.as_millis()));
        let tap = OwnedFd::from(File::open("/dev/null").unwrap());
        Ok(Bridge {
            panel_address: PanelAddress {
                panel: 9,
                place: "b".into(),
            },
            tap: Tap::from_fd(tap, "xb".into()),
        })
    }
    fn vlan_bridge(&self, expiry: Duration, kind: VlanBridge) -> Result<Bridge> {
        self.note(format!("{kind:?}"));
        self.bridge(expiry)
    }
    fn set_vlans(
        &self,
        bridge: &PanelAddress,
        port: BridgePort<'_>,
        vlans: &PortVlans,
    ) -> Result<()> {
        let PanelAddress { panel, place } = bridge;
        self.note(format!("{panel} {place} {port:?} {vlans:?}"));
        Ok(())
    }
    fn store_fd(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.note(format!("store {}", fd.is_some()));
        Ok(())
    }
    fn take_fd(&self) -> Option<OwnedFd> {
        Some(File::open("/dev/null").unwrap().into())
    }
}

struct Null(File);

impl Link for Null {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        batch.push(&[9; 60]);
        Ok(())
    }
    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        Ok(batch.len())
    }
    fn state(&self) -> State {
        State::PLUGGED
    }
    fn status(&self) -> Status {
        Status {
            // Longer than the buffer that a caller passes first.
            reason: "why ".repeat(5000),
            ..Status::default()
        }
    }
    fn wants_panel(&self) -> bool {
        true
    }
}

struct Whole;

impl Plugin for Whole {
    const SCHEME: &'static str = "whole";
    const DESCRIPTION: &'static str = "uses everything";
    const VERSION: &'static str = "3.2.1";
    const CAPABILITIES: Capabilities = Capabilities::NESTS;

    fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
        assert_eq!(request.options.description, "of a link");
        assert_eq!(request.options.port, Some(3));
        assert_eq!(
            (&request.options.group, request.options.mode),
            (&None, Some(0o660))
        );
        match request.argument() {
            "panics" => panic!("on purpose"),
            vnl => {
                uses(request.host);
                request.host.open(vnl)
            }
        }
    }
}

/// Uses every service of the host.
fn uses(host: Host) {
    let port = host.port();
    assert_eq!((&*port.interface, port.mtu), ("vde0", 1400));
    assert_eq!(port.panel_address, HOST.port().panel_address);
    host.plug("there").unwrap();
    let bridge = PanelAddress {
        panel: 5,
        place: "bridge".into(),
    };
    let cut = host.attach(&bridge).unwrap_err();
    assert_eq!(cut.kind, ErrorKind::Usage);
    assert!(
        cut.message.ends_with("é…") && cut.message.len() < 2048,
        "{cut}"
    );
    let bridge = host.bridge(Duration::from_millis(1500)).unwrap();
    assert_eq!(
        (bridge.panel_address.panel, &*bridge.panel_address.place),
        (9, "b")
    );
    assert_eq!(bridge.tap.name(), "xb");
    host.store_fd(None).unwrap();
    host.store_fd(Some(File::open("/dev/null").unwrap().as_fd()))
        .unwrap();
    assert!(host.take_fd().is_some());
    log::info!("in the log");
}

fn options() -> OpenOptions {
    OpenOptions {
        description: "of a link".into(),
        port: Some(3),
        group: None,
        mode: Some(0o660),
    }
}

#[test]
fn everything_of_abi_1_crosses_the_door() {
    static PLUGIN: c::Plugin = plugin::<Whole>(b"whole\0", b"uses everything\0", b"3.2.1\0");
    assert_eq!(c_string::<6>("whole"), *b"whole\0");
    // SAFETY: the table is a static one.
    let module = unsafe { bind((&raw const PLUGIN).cast()) }.unwrap();
    let manifest = module.manifest();
    assert_eq!((&*manifest.scheme, &*manifest.version), ("whole", "3.2.1"));
    assert_eq!(manifest.capabilities, Capabilities::NESTS);
    let open = |argument: &str| module.open(&format!("whole://{argument}"), &options(), &HOST);
    let mut link = open("null://").unwrap();
    let asked = [
        "plug there",
        "attach 5 bridge",
        "bridge 1500",
        "store false",
        "store true",
    ];
    assert_eq!(*HOST.0.lock().unwrap(), asked);
    let mut batch = Batch::new();
    link.recv(&mut batch.rx()).unwrap();
    link.recv(&mut batch.rx()).unwrap();
    assert_eq!(batch.len(), 2);
    assert_eq!(link.send(&mut batch.tx(0)).unwrap(), 2);
    link.other_side(State::UP);
    assert_eq!(link.state(), State::PLUGGED);
    assert!(link.wants_panel() && !link.is_shared());
    assert_eq!(link.status().reason.len(), 20_000);
    let refused = open("nosuch://").err().unwrap();
    assert_eq!(refused.kind, ErrorKind::NotFound);
    assert_eq!(refused.to_string(), "no nosuch://; two lines");
    let panicked = open("panics").err().unwrap();
    assert_eq!(panicked.kind, ErrorKind::Panic);
    let nul = open("a\0b").err().unwrap();
    assert!(
        nul.to_string().contains("a NUL byte is in 'whole://a\\0b'"),
        "{nul}"
    );
}

/// What a link does when it is to receive.
type Receive = fn(&mut c::Batch, &mut c::Error) -> c_int;

/// A link written by hand: its pointer leads to what it does wrong.
mod sloppy {
    use super::*;

    #[derive(Default)]
    pub(super) struct Faults {
        pub(super) fd: Cell<c_int>,
        pub(super) send_fd: c_int,
        pub(super) recv: Option<Receive>,
        pub(super) sent: i32,
        pub(super) report: &'static [u8],
        pub(super) reports: usize,
    }

    /// # Safety
    /// `link` points to faults, as for the others.
    unsafe fn faults<'a>(link: *const c_void) -> &'a Faults {
        // SAFETY: per this function's contract.
        unsafe { &*link.cast() }
    }

    unsafe extern "C" fn fds(link: *const c_void) -> c::Fds {
        // SAFETY: as `faults`.
        let faults = unsafe { faults(link) };
        c::Fds {
            recv: faults.fd.get(),
            send: faults.send_fd,
        }
    }

    unsafe extern "C" fn recv(
        link: *mut c_void,
        batch: *mut c::Batch,
        error: *mut c::Error,
    ) -> c_int {
        // SAFETY: as `faults`; the host lends both.
        unsafe {
            faults(link)
                .recv
                .map_or(0, |recv| recv(&mut *batch, &mut *error))
        }
    }

    unsafe extern "C" fn send(
        link: *mut c_void,
        batch: *mut c::Batch,
        _: u32,
        _: *mut c::Error,
    ) -> i32 {
        // SAFETY: as `faults`; the host lends the batch.
        unsafe {
            (*batch).len = 0;
            faults(link).sent
        }
    }

    unsafe extern "C" fn status(link: *const c_void, text: *mut c_char, size: usize) -> usize {
        // SAFETY: as `faults`; the text has `size` bytes.
        unsafe {
            let faults = faults(link);
            let part = faults.report.len().min(size);
            text.copy_from_nonoverlapping(faults.report.as_ptr().cast(), part);
            faults.reports
        }
    }

    unsafe extern "C" fn close(_: *mut c_void) {}

    pub(super) const CALLS: c::LinkCalls = c::LinkCalls {
        struct_size: size_of::<c::LinkCalls>(),
        fds: Some(fds),
        recv: Some(recv),
        send: Some(send),
        other_side: None,
        state: None,
        status: Some(status),
        close: Some(close),
    };
}

use sloppy::{CALLS, Faults};

/// Opens a link with these functions.
fn open(faults: &Faults, calls: *const c::LinkCalls) -> Result<Box<dyn Link>> {
    let link = c::Link {
        link: std::ptr::from_ref(faults).cast_mut().cast(),
        calls,
    };
    super::incoming::try_cross(link)
}

/// The faults of a link whose descriptor is good.
fn good() -> (File, Faults) {
    let file = File::open("/dev/null").unwrap();
    let fd = file.as_raw_fd();
    let faults = Faults {
        fd: Cell::new(fd),
        send_fd: fd,
        ..Faults::default()
    };
    (file, faults)
}

#[test]
fn a_link_without_what_it_needs_is_refused() {
    let (_file, faults) = good();
    let refused = |calls: *const c::LinkCalls| {
        let error = open(&faults, calls).err().unwrap();
        assert_eq!(
            (error.kind, &*error.hint),
            (ErrorKind::Panic, "report this to the plugin's author")
        );
        error.message
    };
    assert!(refused(null()).contains("no struct vdens_link_calls: the pointer is null"));
    let calls = |change: fn(&mut c::LinkCalls)| {
        let mut calls = CALLS;
        change(&mut calls);
        refused(&calls)
    };
    assert!(calls(|c| c.struct_size = 0).contains("struct_size of struct vdens_link_calls is 0"));
    assert!(calls(|c| c.fds = None).contains("no function fds"));
    assert!(calls(|c| c.recv = None).contains("no function recv"));
    assert!(calls(|c| c.send = None).contains("no function send"));
    assert!(calls(|c| c.close = None).contains("no function close"));
    // As in a table that ends before it.
    assert!(calls(|c| c.struct_size = 56).contains("no function close"));
    for fd in [-1, 9999] {
        let (_file, faults) = good();
        faults.fd.set(fd);
        let error = open(&faults, &CALLS).err().unwrap().message;
        assert!(error.contains(&format!("fds() returned {fd}")), "{error}");
    }
    // The optional ones may be absent.
    let mut least = CALLS;
    least.status = None;
    let mut link = open(&faults, &least).unwrap();
    link.other_side(State::UP);
    assert_eq!(
        (link.state(), link.status()),
        (State::UP, Status::default())
    );
}

#[test]
fn a_descriptor_that_becomes_none_is_an_error_of_the_next_call() {
    let (_file, faults) = good();
    let mut link = open(&faults, &CALLS).unwrap();
    faults.fd.set(-5);
    assert!(link.fd().as_raw_fd() >= 0);
    let error = link.recv(&mut Batch::new().rx()).unwrap_err();
    assert!(error.message.contains("the descriptor -5"), "{error}");
    assert!(link.send(&mut Batch::new().tx(0)).is_err());
}

#[test]
fn nonsense_in_a_batch_costs_no_more_than_the_link() {
    let receive = |recv: Receive| {
        let (_file, faults) = good();
        let faults = Faults {
            recv: Some(recv),
            ..faults
        };
        let mut batch = Batch::new();
        batch.rx().push(&[1; 60]);
        let result = open(&faults, &CALLS).unwrap().recv(&mut batch.rx());
        (batch.tx(0).frames().count(), batch.take_dropped(), result)
    };
    let moves: [Receive; 4] = [
        |batch, _| {
            batch.arena = null_mut();
            0
        },
        |batch, _| {
            batch.arena_len = u32::MAX;
            0
        },
        |batch, _| {
            batch.slots = null_mut();
            0
        },
        |batch, _| {
            batch.slot_capacity = u32::MAX;
            0
        },
    ];
    for moved in moves {
        let (_, _, result) = receive(moved);
        assert!(
            result
                .unwrap_err()
                .message
                .contains("where the batch's arena")
        );
    }
    // Counts and slots out of range: what is no frame is dropped and counted.
    let (frames, dropped, result) = receive(|batch, _| {
        (batch.len, batch.used) = (u32::MAX, u32::MAX);
        0
    });
    assert_eq!((frames, dropped), (1, 31));
    result.unwrap();
    let (frames, dropped, _) = receive(|batch, _| {
        // SAFETY: the second slot is there.
        unsafe {
            *batch.slots.add(1) = c::Slot {
                offset: u32::MAX,
                len: u32::MAX,
            };
        }
        batch.len = 2;
        0
    });
    assert_eq!((frames, dropped), (1, 1));
    // Errors without text, or with text that is none.
    let silent = receive(|_, _| -1).2.unwrap_err();
    assert!(
        silent
            .message
            .contains("recv() failed, and the plugin does not say why")
    );
    let odd = receive(|_, error| {
        error.code = 99;
        error.message = [0xc3_u8 as c_char; 2048];
        (error.hint[0], error.hint[1]) = (b'a' as c_char, b'\n' as c_char);
        7
    });
    let odd = odd.2.unwrap_err();
    assert_eq!(
        (odd.kind, odd.message.chars().count(), &*odd.hint),
        (ErrorKind::Other, 2048, "a ")
    );
}

#[test]
fn a_link_takes_no_more_than_it_was_offered() {
    let (_file, mut faults) = good();
    for (says, taken) in [
        (1, Some(1)),
        (i32::MAX, Some(2)),
        (-1, None),
        (i32::MIN, None),
    ] {
        faults.sent = says;
        let mut batch = Batch::new();
        batch.rx().push(&[1; 60]);
        batch.rx().push(&[2; 60]);
        let sent = open(&faults, &CALLS).unwrap().send(&mut batch.tx(0));
        assert_eq!(sent.ok(), taken, "{says}");
        assert_eq!(batch.len(), 2, "a link cannot change what it is to send");
    }
}

#[test]
fn a_report_may_be_nonsense() {
    let (_file, faults) = good();
    let report = |report: &'static [u8], reports| {
        let faults = Faults {
            fd: faults.fd.clone(),
            send_fd: faults.send_fd,
            report,
            reports,
            ..Faults::default()
        };
        open(&faults, &CALLS).unwrap().status()
    };
    assert_eq!(report(br#"{"reason":"r"}"#, 14).reason, "r");
    assert_eq!(report(b"\xff\xfe", 2), Status::default());
    assert_eq!(report(b"{", usize::MAX), Status::default());
    assert_eq!(report(b"", 0), Status::default());
}

#[test]
fn a_plugin_s_table_is_checked() {
    let good = c::Plugin {
        struct_size: size_of::<c::Plugin>(),
        ..plugin::<Whole>(b"x\0", b"d\0", b"1\0")
    };
    let refused = |change: fn(&mut c::Plugin)| {
        let mut table = good;
        change(&mut table);
        // SAFETY: the texts are static.
        let bound = unsafe { bind((&raw const table).cast()) };
        bound.err().map_or(String::new(), |error| error.to_string())
    };
    assert_eq!(refused(|_| {}), "");
    assert_eq!(refused(|p| p.struct_size += 8), "");
    for (change, words) in [
        (
            (|p| p.scheme = null()) as fn(&mut c::Plugin),
            "its scheme is a null pointer",
        ),
        (|p| p.version = c"\xff".as_ptr(), "its version is not UTF-8"),
        (|p| p.open = None, "it has no function open"),
        (|p| p.struct_size = 40, "it has no function open"),
        (
            |p| p.struct_size = 3,
            "the struct_size of struct vdens_plugin is 3",
        ),
    ] {
        let why = refused(change);
        let words = format!("its vdens_plugin_c1 is malformed: {words}");
        assert_eq!(why, words);
    }
}

#[test]
fn a_plugin_may_pass_null_pointers_to_its_host() {
    let host = export_services(&HOST);
    // SAFETY: the table is this side's.
    let calls = unsafe { *host.calls };
    let mut error = super::NO_ERROR;
    let services = host.services;
    // SAFETY: null pointers are what is tried; all others are good.
    unsafe {
        (calls.log.unwrap())(9, null(), null());
        (calls.port.unwrap())(services, null_mut());
        let fails = |result: c_int, error: &c::Error, words: &str| {
            assert_eq!((result, error.code), (-1, c::error_code::USAGE));
            assert_eq!(
                buffered(&error.message),
                format!("{words} is a null pointer")
            );
        };
        let mut link = c::Link {
            link: null_mut(),
            calls: null(),
        };
        let open = calls.open.unwrap();
        fails(
            open(services, null(), &raw mut link, &raw mut error),
            &error,
            "the VNL to open",
        );
        let result = open(services, c"null://".as_ptr(), null_mut(), &raw mut error);
        fails(result, &error, "the place for the link to open");
        let result = (calls.hub.unwrap())(services, 0, null_mut(), &raw mut error);
        fails(result, &error, "the place for the hub");
        let result = (calls.plug.unwrap())(services, null(), &raw mut error);
        fails(result, &error, "the place to plug into");
        // Nor need it care why.
        assert_eq!((calls.plug.unwrap())(services, null(), null_mut()), -1);
    }
}

#[test]
fn bridges_that_know_vlans_are_offered_beside_the_doors() {
    static HOST: Everything = Everything(Mutex::new(Vec::new()));
    // SAFETY: the services live as long as the process.
    let host = unsafe { RemoteHost::new(export_services(&HOST)) }.unwrap();
    let bridge = PanelAddress {
        panel: 5,
        place: "b".into(),
    };
    let make = |kind| host.vlan_bridge(Duration::from_millis(7), kind);
    let set = |port, untagged, tagged: &[u16]| {
        let tagged = tagged.iter().copied().collect();
        host.set_vlans(&bridge, port, &PortVlans { untagged, tagged })
    };
    // An older host offers none.
    let errors = [
        make(VlanBridge::Untagged).unwrap_err(),
        set(BridgePort::Tap, None, &[]).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.message.starts_with("this vdens has no"), "{error}");
    }
    // SAFETY: null is no table; the function is of the symbol's type.
    unsafe {
        panel::take_panel(null());
        panel::offer(panel::take_panel as *const ());
    }
    assert_eq!(make(VlanBridge::Untagged).unwrap().tap.name(), "xb");
    make(VlanBridge::Filtering).unwrap();
    set(BridgePort::Tap, None, &[]).unwrap();
    set(BridgePort::Interface("p"), Some(1), &[8, 4094]).unwrap();
    for (untagged, tagged, wrong) in [(Some(0), &[][..], 0), (None, &[1, 4095], 4095)] {
        let error = set(BridgePort::Tap, untagged, tagged).unwrap_err();
        let words = format!("{wrong} is no VLAN");
        assert!(error.kind == ErrorKind::Usage && error.message.starts_with(&words));
    }
    let asked = [
        "Untagged",
        "bridge 7",
        "Filtering",
        "bridge 7",
        "5 b Tap PortVlans { untagged: None, tagged: {} }",
        "5 b Interface(\"p\") PortVlans { untagged: Some(1), tagged: {8, 4094} }",
    ];
    assert_eq!(*HOST.0.lock().unwrap(), asked);
}

#[test]
fn an_older_host_lacks_functions() {
    let host = export_services(&HOST);
    // SAFETY: the table is this side's.
    let mut calls = unsafe { *host.calls };
    calls.struct_size = std::mem::offset_of!(c::HostCalls, port);
    let older = c::Host {
        calls: &raw const calls,
        ..host
    };
    // SAFETY: the table lives as long as this test.
    let remote: &'static RemoteHost =
        Box::leak(Box::new(unsafe { RemoteHost::new(older) }.unwrap()));
    assert_eq!(remote.port(), HostPort::default());
    let error = remote.plug("x").unwrap_err();
    assert_eq!(
        (error.kind, &*error.message),
        (ErrorKind::Unsupported, "this vdens has no function plug")
    );
    assert!(remote.take_fd().is_none() && remote.open("null://").is_ok());
}

#[test]
fn text_is_cut_between_characters() {
    let mut buffer = [1; 8];
    for (text, want) in [
        ("", ""),
        ("abcdefg", "abcdefg"),
        ("abcdefgh", "abcd…"),
        ("éééé", "éé…"),
        ("a\0b", "a"),
    ] {
        fill(&mut buffer, text);
        assert_eq!(buffered(&buffer), want);
    }
}
