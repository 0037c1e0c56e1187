//! What a plugin author sees at open: the request, and the host's services behind it.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::tap::Tap;
use crate::vnl::Vnl;
use crate::{Error, ErrorKind, Link, Result};

/// What the host tells a plugin when a link is to be opened.
#[derive(Debug)]
pub struct OpenRequest<'a> {
    /// The whole VNL, as the user wrote it after resolution: `scheme://argument`.
    pub vnl: &'a str,
    /// Options from the command line; a key in the VNL wins over them.
    pub options: OpenOptions,
    /// The host's services.
    pub host: Host,
}

impl<'a> OpenRequest<'a> {
    /// The VNL without its scheme: what the plugin parses with [`crate::vnl::Spec`].
    pub fn argument(&self) -> &'a str {
        Vnl::parse(self.vnl).map_or(self.vnl, |vnl| vnl.argument)
    }
}

/// Options that every transport may be given beside its VNL (those of `vde_plug`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// What the far end may show for this link; empty for none.
    pub description: String,
    /// The port of a switch to be plugged into.
    pub port: Option<u32>,
    /// The group that sockets are to belong to.
    pub group: Option<String>,
    /// The permission bits of sockets.
    pub mode: Option<u32>,
}

/// The host side of the link that is being opened: where the frames go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The interface's name in the namespace (`vde0`); empty if the other end is no interface.
    pub interface: String,
    /// The interface's MTU in bytes at start; 0 if the other end is no interface.
    pub mtu: u32,
    /// Where the interface can be plugged by the kernel, if it can.
    pub ticket: Option<Ticket>,
}

/// A place on the user's panel, where the kernel can carry frames from one interface to another: what two
/// ends tell each other to find out whether they can be plugged together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The panel: unique on the machine while it exists. Only places on one panel can be plugged together.
    pub panel: u64,
    /// The place: lower-case letters and digits, at most 14 of them. It cannot be guessed, so that
    /// who names it was told of it.
    pub place: String,
}

/// A bridge on the user's panel: whose interfaces are plugged into it, the kernel carries frames between them.
#[derive(Debug)]
pub struct Hub {
    /// Where to plug in: what is told to those who may.
    pub ticket: Ticket,
    /// A port of it, through which this process takes part. The hub is gone when this is closed and the last
    /// interface unplugged.
    pub tap: Tap,
}

/// The services of the host. Cheap to clone, usable from any thread, valid for the life of the process.
#[derive(Clone, Copy)]
pub struct Host {
    services: &'static dyn HostServices,
}

impl Host {
    /// A host that offers nothing: for a plugin's own tests.
    pub fn without_services() -> Self {
        Self::new(&NoServices)
    }

    pub(crate) fn new(services: &'static dyn HostServices) -> Self {
        Self { services }
    }

    /// Opens another VNL, through whatever plugin its scheme needs: how `outer://…{inner://…}` reaches
    /// its inner link.
    ///
    /// # Errors
    /// What the inner plugin reports, or that there is none for its scheme.
    pub fn open(&self, vnl: &str) -> Result<Box<dyn Link>> {
        self.services.open(vnl)
    }

    /// The host side of the link.
    pub fn port(&self) -> Port {
        self.services.port()
    }

    /// Plugs the interface into a cable with the place `peer` on the same panel, as the peer must do on its
    /// side. From then on the kernel carries the frames, and the link's state is to say so
    /// ([`crate::State::plugged`]) until the peer is gone; what the link says after that unplugs it.
    ///
    /// # Errors
    /// There is no ticket, or the kernel refuses: frames go on through the link.
    pub fn plug(&self, peer: &str) -> Result<()> {
        self.services.plug(peer)
    }

    /// Plugs the interface into a [`Hub`], which may be another process's. For the rest as [`Host::plug`]; neither
    /// is possible before the link is open and has been told of the other side.
    ///
    /// # Errors
    /// There is no ticket, or the hub is on another panel or gone, or the kernel refuses.
    pub fn attach(&self, hub: &Ticket) -> Result<()> {
        self.services.attach(hub)
    }

    /// Makes a hub that forgets a station which has been silent for `expiry`; if that is zero it learns of none, and
    /// all interfaces get all frames. Takes some milliseconds; not before the link is open.
    ///
    /// # Errors
    /// There is no panel, or the kernel refuses.
    pub fn hub(&self, expiry: Duration) -> Result<Hub> {
        self.services.hub(expiry)
    }

    /// Has the session hold a descriptor, beside the link's own, in place of the one that it held before. If the
    /// process that serves the link dies, the one that takes its place finds it with [`Host::kept`]: so a socket
    /// outlives the plugin, and a peer that is connected to it need not notice. `None` when it is of no more use, which is
    /// so when the link closes it.
    ///
    /// # Errors
    /// Nobody takes the place of this process, as in vde_plug, or the link is a nested one.
    pub fn keep(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.services.keep(fd)
    }

    /// The descriptor that the last process to serve this link had kept, for the first who asks. It is held still, until
    /// [`Host::keep`] puts another or none in its place.
    pub fn kept(&self) -> Option<OwnedFd> {
        self.services.kept()
    }
}

/// What a host provides to the plugins that it loads.
pub trait HostServices: Send + Sync {
    /// Opens a VNL for a plugin that nests it.
    ///
    /// # Errors
    /// What opening it reports.
    fn open(&'static self, vnl: &str) -> Result<Box<dyn Link>>;

    /// The host side of the link.
    fn port(&self) -> Port;

    /// Plugs the interface into a cable with another place on the panel.
    ///
    /// # Errors
    /// There is no panel, or the kernel refuses.
    fn plug(&self, peer: &str) -> Result<()>;

    /// Plugs the interface into a hub.
    ///
    /// # Errors
    /// There is no panel, the hub is not on it, or the kernel refuses.
    fn attach(&self, hub: &Ticket) -> Result<()>;

    /// Makes a hub.
    ///
    /// # Errors
    /// There is no panel, or the kernel refuses.
    fn hub(&self, expiry: Duration) -> Result<Hub>;

    /// Holds a descriptor for the next process that serves the link, in place of the one held before.
    ///
    /// # Errors
    /// There is nobody to hold it.
    fn keep(&self, fd: Option<BorrowedFd<'_>>) -> Result<()>;

    /// What the last process that served the link had kept, the first time.
    fn kept(&self) -> Option<OwnedFd>;
}

/// What [`Host::without_services`] offers.
struct NoServices;

impl HostServices for NoServices {
    fn open(&'static self, vnl: &str) -> Result<Box<dyn Link>> {
        let message = format!("there is nobody to open {vnl}");
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    fn port(&self) -> Port {
        Port {
            interface: String::new(),
            mtu: 0,
            ticket: None,
        }
    }

    fn plug(&self, peer: &str) -> Result<()> {
        let message = format!("there is no panel to plug into {peer} on");
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    fn attach(&self, hub: &Ticket) -> Result<()> {
        self.plug(&hub.place)
    }

    fn hub(&self, _expiry: Duration) -> Result<Hub> {
        let message = "there is no panel to make a hub on";
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    fn keep(&self, _fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let message = "there is nobody to keep a descriptor for";
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    fn kept(&self) -> Option<OwnedFd> {
        None
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}

/// What a plugin says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The scheme it serves; the file is named `libvdens_SCHEME.so`.
    pub scheme: String,
    /// One line for a person.
    pub description: String,
    /// The plugin's own version.
    pub version: String,
    /// What its links are like.
    pub capabilities: Capabilities,
}

/// What a plugin's links are like, for listings and for the conformance checks: what a link really does, it
/// says when it is open ([`crate::State`]). Bits that the reader does not know are ignored.
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

    const NAMES: [(Self, &str); 6] = [
        (Self::NESTS, "nests"),
        (Self::SUPER_FRAMES, "super-frames"),
        (Self::PANEL, "panel"),
        (Self::SHARED, "shared"),
        (Self::ONE_END, "one-end"),
        (Self::STANDS_IN, "stands-in"),
    ];

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
    /// One line for a person.
    const DESCRIPTION: &'static str;
    /// The plugin's own version.
    const VERSION: &'static str;
    /// What its links are like.
    const CAPABILITIES: Capabilities = Capabilities::NONE;

    /// Opens a link.
    ///
    /// # Errors
    /// Why it cannot be opened, in words for the person who wrote the VNL.
    fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>>;
}

/// Makes the crate, a `cdylib`, a plugin.
///
/// ```
/// use vdens_plugin_kit::{Link, OpenRequest, Result, RxBatch, TxBatch};
/// use std::os::fd::{AsFd, BorrowedFd};
/// use std::os::unix::net::UnixDatagram;
///
/// /// Sends every frame back to where it came from.
/// struct Echo(UnixDatagram, UnixDatagram);
///
/// impl Link for Echo {
///     fn fd(&self) -> BorrowedFd<'_> {
///         self.1.as_fd()
///     }
///     fn send_fd(&self) -> BorrowedFd<'_> {
///         self.0.as_fd()
///     }
///     fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
///         batch.receive_datagrams(&self.1, 1518).map_err(|e| vdens_plugin_kit::Error::io("receive", &e))?;
///         Ok(())
///     }
///     fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
///         batch.send_datagrams(&self.0, 0).map_err(|e| vdens_plugin_kit::Error::io("send", &e))
///     }
/// }
///
/// fn open(_request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
///     let (a, b) = UnixDatagram::pair().map_err(|e| vdens_plugin_kit::Error::io("make a socket pair", &e))?;
///     Ok(Box::new(Echo(a, b)))
/// }
///
/// vdens_plugin_kit::export_plugin! {
///     scheme: "echo",
///     description: "sends every frame back",
///     open: open,
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_plugin {
    (
        scheme: $scheme:expr,
        description: $description:expr,
        $(capabilities: $capabilities:expr,)?
        open: $open:expr $(,)?
    ) => {
        const _: () = {
            struct Exported;

            impl $crate::Plugin for Exported {
                const SCHEME: &'static str = $scheme;
                const DESCRIPTION: &'static str = $description;
                const VERSION: &'static str = env!("CARGO_PKG_VERSION");
                $(const CAPABILITIES: $crate::Capabilities = $capabilities;)?

                fn open(
                    request: &$crate::OpenRequest<'_>,
                ) -> $crate::Result<::std::boxed::Box<dyn $crate::Link>> {
                    $open(request)
                }
            }

            #[unsafe(export_name = "vdens_plugin_abi")]
            static ABI: u32 = $crate::adapters::VERSION;

            #[unsafe(export_name = "vdens_plugin_v1")]
            static HEADER: $crate::adapters::LibHeader = $crate::adapters::header::<Exported>();
        };
    };
}
