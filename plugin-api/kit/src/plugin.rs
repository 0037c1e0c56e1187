//! Opening a link: the request, the host's services, and the plugin that answers.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::tap::Tap;
use crate::vnl::Vnl;
use crate::{BridgePort, Error, ErrorKind, Link, PortVlans, Result, VlanBridge};

/// A request to open a link.
#[derive(Debug)]
pub struct OpenRequest<'a> {
    /// The whole VNL, as the user wrote it after resolution: `scheme://argument`.
    pub vnl: &'a str,
    /// Options of the command line. A key in the VNL takes precedence.
    pub options: OpenOptions,
    /// The host's services.
    pub host: Host,
}

impl<'a> OpenRequest<'a> {
    /// The VNL without its scheme, for [`crate::vnl::Spec`] to parse.
    pub fn argument(&self) -> &'a str {
        Vnl::parse(self.vnl).map_or(self.vnl, |vnl| vnl.argument)
    }
}

/// The options of `vde_plug` that a transport gets beside its VNL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// A description of this link that the far end may show; may be empty.
    pub description: String,
    /// The port of the switch to plug into.
    pub port: Option<u32>,
    /// The group of sockets.
    pub group: Option<String>,
    /// The permission bits of sockets.
    pub mode: Option<u32>,
}

/// The host side of the link: where received frames go, and sent frames come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPort {
    /// The interface's name in the namespace (`vde0`); empty if the other end is no interface.
    pub interface: String,
    /// The interface's MTU in bytes at the start; 0 if the other end is no interface.
    pub mtu: u32,
    /// The interface's address on the panel, if it has one.
    pub panel_address: Option<PanelAddress>,
}

/// An address on the user's panel, where the kernel can carry frames from one interface to another.
/// Two ends exchange their addresses to find out whether they can be plugged together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanelAddress {
    /// The panel's id, unique on the machine while the panel exists. Only places on one panel can
    /// be plugged together.
    pub panel: u64,
    /// The place on the panel: at most 14 lower-case letters and digits. It cannot be guessed, so a
    /// process that names it has received it.
    pub place: String,
}

/// A bridge on the user's panel: the kernel forwards frames between all interfaces attached to it.
#[derive(Debug)]
pub struct Bridge {
    /// The address by which others attach their interfaces ([`Host::attach`]).
    pub panel_address: PanelAddress,
    /// A port of the bridge, for this process. The kernel deletes the bridge when this is closed
    /// and the last interface is unplugged.
    pub tap: Tap,
}

/// The services of the host. Cheap to clone, usable from any thread, valid for the life of the
/// process.
#[derive(Clone, Copy)]
pub struct Host {
    services: &'static dyn HostServices,
}

impl Host {
    /// A host that offers nothing, for a plugin's own tests.
    pub fn without_services() -> Self {
        Self::new(&NoServices)
    }

    pub(crate) fn new(services: &'static dyn HostServices) -> Self {
        Self { services }
    }

    /// Opens another VNL with the plugin of its scheme. A link that nests another opens it so
    /// (`outer://…{inner://…}`).
    ///
    /// # Errors
    /// There is no plugin for the scheme, or opening the link fails.
    pub fn open(&self, vnl: &str) -> Result<Box<dyn Link>> {
        self.services.open(vnl)
    }

    /// The host side of the link.
    pub fn port(&self) -> HostPort {
        self.services.port()
    }

    /// Plugs the interface into a cable to the place `peer` on the same panel. The peer must do the
    /// same on its side. From then on the kernel carries the frames.
    ///
    /// While the peer is there, the link reports [`State::PLUGGED`](crate::State::PLUGGED). When
    /// the link reports another state, the host unplugs the interface.
    ///
    /// # Errors
    /// The interface has no panel address, or the kernel refuses. Frames still go through the link.
    pub fn plug(&self, peer: &str) -> Result<()> {
        self.services.plug(peer)
    }

    /// Plugs the interface into a [`Bridge`], of this process or another. Otherwise as
    /// [`Host::plug`]. Neither is possible before the first call of [`Link::other_side`].
    ///
    /// # Errors
    /// The interface has no panel address, the bridge is on another panel or gone, or the kernel
    /// refuses.
    pub fn attach(&self, bridge: &PanelAddress) -> Result<()> {
        self.services.attach(bridge)
    }

    /// Makes a bridge that forgets an address after it has been silent for `expiry`. If `expiry` is
    /// zero, the bridge learns no addresses and floods all frames. The call takes some
    /// milliseconds. It is not possible before the link is open.
    ///
    /// # Errors
    /// There is no panel, or the kernel refuses.
    pub fn bridge(&self, expiry: Duration) -> Result<Bridge> {
        self.services.bridge(expiry)
    }

    /// Makes a bridge that knows VLANs. Otherwise as [`Host::bridge`].
    ///
    /// # Errors
    /// There is no panel, or the kernel refuses. [`ErrorKind::Unsupported`]: the kernel or the host
    /// has no such bridges.
    pub fn vlan_bridge(&self, expiry: Duration, kind: VlanBridge) -> Result<Bridge> {
        self.services.vlan_bridge(expiry, kind)
    }

    /// Puts a port of a [filtering](VlanBridge::Filtering) bridge in these VLANs, and takes it out
    /// of all others.
    ///
    /// # Errors
    /// A number is that of no VLAN, the port is not on the bridge, the bridge is on another panel,
    /// or the kernel refuses.
    pub fn set_vlans(
        &self,
        bridge: &PanelAddress,
        port: BridgePort<'_>,
        vlans: &PortVlans,
    ) -> Result<()> {
        self.services.set_vlans(bridge, port, vlans)
    }

    /// Stores a copy of a descriptor in the session, in place of the one stored before.
    ///
    /// When the process that serves the link dies, its successor gets the descriptor from
    /// [`Host::take_fd`]. So a socket outlives the plugin, and its peer need not notice. Store
    /// `None` when the descriptor is of no more use, for example when the link closes the socket.
    ///
    /// # Errors
    /// This process has no successor, as in `vde_plug`, or the link is nested.
    pub fn store_fd(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.services.store_fd(fd)
    }

    /// The descriptor that this process's predecessor stored, at the first call. The session stores
    /// it until the next [`Host::store_fd`].
    pub fn take_fd(&self) -> Option<OwnedFd> {
        self.services.take_fd()
    }
}

/// What a host implements for the plugins that it loads. [`Host`] describes each method.
pub trait HostServices: Send + Sync {
    /// See [`Host::open`].
    ///
    /// # Errors
    /// There is no plugin for the scheme, or opening the link fails.
    fn open(&'static self, vnl: &str) -> Result<Box<dyn Link>>;

    /// See [`Host::port`].
    fn port(&self) -> HostPort;

    /// See [`Host::plug`].
    ///
    /// # Errors
    /// There is no panel, or the kernel refuses.
    fn plug(&self, peer: &str) -> Result<()>;

    /// See [`Host::attach`].
    ///
    /// # Errors
    /// There is no panel, the bridge is not on it, or the kernel refuses.
    fn attach(&self, bridge: &PanelAddress) -> Result<()>;

    /// See [`Host::bridge`].
    ///
    /// # Errors
    /// There is no panel, or the kernel refuses.
    fn bridge(&self, expiry: Duration) -> Result<Bridge>;

    /// See [`Host::vlan_bridge`].
    ///
    /// # Errors
    /// There is no panel, or the kernel or the host has no such bridges.
    fn vlan_bridge(&self, _expiry: Duration, _kind: VlanBridge) -> Result<Bridge> {
        Err(no_vlan_bridges())
    }

    /// See [`Host::set_vlans`].
    ///
    /// # Errors
    /// The kernel refuses, or there is no such port or bridge.
    fn set_vlans(
        &self,
        _bridge: &PanelAddress,
        _port: BridgePort<'_>,
        _vlans: &PortVlans,
    ) -> Result<()> {
        Err(no_vlan_bridges())
    }

    /// See [`Host::store_fd`].
    ///
    /// # Errors
    /// This process has no successor, or the link is nested.
    fn store_fd(&self, fd: Option<BorrowedFd<'_>>) -> Result<()>;

    /// See [`Host::take_fd`].
    fn take_fd(&self) -> Option<OwnedFd>;
}

/// The error of a host that was built before there were bridges that know VLANs.
pub(crate) fn no_vlan_bridges() -> Error {
    let message = "this vdens has no bridges on the panel that know VLANs";
    Error::new(ErrorKind::Unsupported, message)
}

/// The services of [`Host::without_services`]: none.
struct NoServices;

impl HostServices for NoServices {
    fn open(&'static self, vnl: &str) -> Result<Box<dyn Link>> {
        let message = format!("no host is there to open {vnl}");
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    fn port(&self) -> HostPort {
        HostPort::default()
    }

    fn plug(&self, peer: &str) -> Result<()> {
        let message = format!("there is no panel to plug into {peer}");
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    fn attach(&self, bridge: &PanelAddress) -> Result<()> {
        self.plug(&bridge.place)
    }

    fn bridge(&self, _expiry: Duration) -> Result<Bridge> {
        let message = "there is no panel to make a bridge on";
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    fn store_fd(&self, _fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let message = "no process would take the descriptor over";
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    fn take_fd(&self) -> Option<OwnedFd> {
        None
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}

/// The description of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The scheme it serves; the file is named `libvdens_SCHEME.so`.
    pub scheme: String,
    /// One line for the user.
    pub description: String,
    /// The plugin's own version.
    pub version: String,
    /// The properties of its links.
    pub capabilities: Capabilities,
}

/// The properties of a plugin's links, for listings and for the conformance checks. The properties
/// of an open link are in its [`crate::State`]. Unknown bits are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// None of the others: a cable that joins two ends.
    pub const NONE: Self = Self(0);
    /// Its VNLs have another VNL in braces, which it opens with [`Host::open`].
    pub const NESTS: Self = Self(1);
    /// Its links may take super-frames ([`crate::State::offloads`]).
    pub const SUPER_FRAMES: Self = Self(2);
    /// The kernel may carry its frames ([`crate::Link::wants_panel`]).
    pub const PANEL: Self = Self(4);
    /// Its links serve others as well ([`crate::Link::is_shared`]).
    pub const SHARED: Self = Self(8);
    /// Its far end is no link of its own: what goes into one link does not come out of another.
    pub const ONE_END: Self = Self(16);
    /// What its links do, a link does that it opens with [`Host::open`]: the interface may be
    /// plugged into that link's peer.
    pub const STANDS_IN: Self = Self(32);
    /// The process of its links may be confined to what the plugin says that it needs. `needs` of
    /// [`crate::export_plugin!`] sets it.
    pub const CONFINED: Self = Self(64);

    const NAMES: [(Self, &str); 7] = [
        (Self::NESTS, "nests"),
        (Self::SUPER_FRAMES, "super-frames"),
        (Self::PANEL, "panel"),
        (Self::SHARED, "shared"),
        (Self::ONE_END, "one-end"),
        (Self::STANDS_IN, "stands-in"),
        (Self::CONFINED, "confined"),
    ];

    /// Those of a plugin that says what its links need.
    #[doc(hidden)]
    #[must_use]
    pub const fn with_needs(self, needs: &str) -> Self {
        match needs.as_bytes() {
            b"anything" => self,
            _ => self.and(Self::CONFINED),
        }
    }

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every capability in `other` is in this set too.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of those that are known.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let known = Self::NAMES.iter();
        known.filter_map(move |(bit, name)| self.contains(*bit).then_some(*name))
    }
}

/// A plugin, as [`crate::export_plugin!`] makes one.
pub trait Plugin: 'static {
    /// The scheme it serves: lower-case letters, digits and underscores.
    const SCHEME: &'static str;
    /// One line for the user.
    const DESCRIPTION: &'static str;
    /// The plugin's own version.
    const VERSION: &'static str;
    /// The properties of its links.
    const CAPABILITIES: Capabilities = Capabilities::NONE;

    /// Opens a link.
    ///
    /// # Errors
    /// The link cannot be opened. The message is for the user who wrote the VNL.
    fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>>;
}

/// Makes the crate, a `cdylib`, a plugin. The [front page](crate) has a complete example.
///
/// ```
/// # use vdens_plugin_kit::{Capabilities, Error, Link, OpenRequest, Result};
/// fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
///     Err(Error::usage(format!("'{}' is no cable", request.argument())))
/// }
///
/// vdens_plugin_kit::export_plugin! {
///     scheme: "mycable",
///     description: "a cable between two processes",
///     capabilities: Capabilities::NONE, // may be left out
///     needs: "sockets:{dir}", // may be left out
///     open: open,
/// }
/// ```
///
/// With `needs`, the host confines the process of each link to what these words say
/// (docs/sandbox.md lists them), and to what every link needs. Without, it does not, but no program
/// that the links start gains rights. That is for `needs: "anything"`.
#[macro_export]
macro_rules! export_plugin {
    (
        scheme: $scheme:expr,
        description: $description:expr,
        $(capabilities: $capabilities:expr,)?
        $(needs: $needs:literal,)?
        open: $open:expr $(,)?
    ) => {
        const _: () = {
            struct Exported;

            impl $crate::Plugin for Exported {
                const SCHEME: &'static str = $scheme;
                const DESCRIPTION: &'static str = $description;
                const VERSION: &'static str = env!("CARGO_PKG_VERSION");
                const CAPABILITIES: $crate::Capabilities = $crate::Capabilities::NONE
                    $(.and($capabilities))?
                    $(.with_needs($needs))?;

                fn open(
                    request: &$crate::OpenRequest<'_>,
                ) -> $crate::Result<::std::boxed::Box<dyn $crate::Link>> {
                    $open(request)
                }
            }

            #[unsafe(export_name = "vdens_plugin_abi")]
            static ABI: u32 = $crate::adapters::VERSION;

            $(
                #[unsafe(export_name = "vdens_plugin_needs")]
                static NEEDS: [u8; $needs.len() + 1] =
                    $crate::adapters::c_string::<{ $needs.len() + 1 }>($needs);
            )?

            #[unsafe(export_name = "vdens_plugin_c1")]
            static PLUGIN: $crate::adapters::CPlugin = $crate::adapters::plugin::<Exported>(
                $crate::c_text!(<Exported as $crate::Plugin>::SCHEME),
                $crate::c_text!(<Exported as $crate::Plugin>::DESCRIPTION),
                $crate::c_text!(<Exported as $crate::Plugin>::VERSION),
            );

            #[unsafe(export_name = "vdens_plugin_panel")]
            unsafe extern "C" fn panel(calls: *const $crate::adapters::PanelCalls) {
                // SAFETY: the host keeps to the contract of this symbol.
                unsafe { $crate::adapters::take_panel(calls) }
            }

            $crate::export_door_v1!(Exported);
        };
    };
}

/// A constant text with a NUL byte at its end.
#[doc(hidden)]
#[macro_export]
macro_rules! c_text {
    ($text:expr) => {{
        const LEN: usize = $text.len() + 1;
        static BYTES: [u8; LEN] = $crate::adapters::c_string::<LEN>($text);
        &BYTES
    }};
}

/// Exports the door v1 as well.
#[cfg(feature = "abi-stable")]
#[doc(hidden)]
#[macro_export]
macro_rules! export_door_v1 {
    ($plugin:ty) => {
        #[unsafe(export_name = "vdens_plugin_v1")]
        static HEADER: $crate::adapters::LibHeader = $crate::adapters::header::<$plugin>();
    };
}

/// The door v1 is not in this build.
#[cfg(not(feature = "abi-stable"))]
#[doc(hidden)]
#[macro_export]
macro_rules! export_door_v1 {
    ($plugin:ty) => {};
}
