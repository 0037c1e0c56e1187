//! Which tier of the data plane a link is on, and why not a better one.
//!
//! The states of the two links of a pump decide that; what a link's status adds is the reason. A change is logged,
//! one line each, at level info. Two ends take a moment to get acquainted, so a lesser tier is only told when it
//! has lasted for `SETTLING`.

use std::time::{Duration, Instant};

use vdens_plugin_kit::{Link, MAX_LEGACY_MTU, Offloads, Status, Tier};

/// How long a tier must have lasted to be told, unless there is hardly a better one.
const SETTLING: Duration = Duration::from_millis(250);

/// The tier of the link `far`, whose frames go to and come from `near`; `None` while there is no carrier.
/// `status` is `far`'s.
pub fn tier(near: &dyn Link, far: &dyn Link, status: &Status) -> Option<Tier> {
    let state = far.state();
    let by_state = match state.offloads {
        Offloads::NONE => Tier::Segmented,
        _ => Tier::SuperFrames,
    };
    match (state.carrier, state.plugged, status.tier) {
        (false, ..) => None,
        (_, true, _) => Some(Tier::Kernel),
        (_, _, Some(Tier::Taps)) if near.status().tier != Some(Tier::Taps) => Some(by_state),
        (_, _, stated) => Some(stated.unwrap_or(by_state)),
    }
}

/// Why `tier` is not a better one, or why there is no carrier; empty if there is nothing to say.
pub fn reason(tier: Option<Tier>, status: &Status) -> &str {
    match tier {
        Some(Tier::Kernel) => "",
        None => &status.reason,
        _ if !status.reason.is_empty() => &status.reason,
        Some(Tier::Segmented) => "the transport takes no super-frames",
        Some(_) => "the transport does not use the panel",
    }
}

/// Watches one link's tier.
#[derive(Debug)]
pub struct Watch {
    name: String,
    told: Option<Option<Tier>>,
    /// When to look again.
    due: Option<Instant>,
    /// The MTU of the interface at the near side, if there is one, in bytes.
    mtu: u32,
}

impl Watch {
    /// For the link that the log calls `name`.
    pub fn new(name: String) -> Self {
        Self {
            name,
            told: None,
            due: None,
            mtu: 0,
        }
    }

    /// Warns too when the link cannot carry the frames of an interface with this MTU.
    #[must_use]
    pub fn with_mtu(self, mtu: u32) -> Self {
        Self { mtu, ..self }
    }

    /// When [`Watch::look`] is to be called.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Looks, because the state has changed or it is time, and tells what is new.
    pub fn look(&mut self, near: &dyn Link, far: &dyn Link, is_change: bool) {
        if !log::log_enabled!(log::Level::Info) && self.mtu <= MAX_LEGACY_MTU {
            return;
        }
        let status = far.status();
        let tier = tier(near, far, &status);
        let is_good = matches!(tier, Some(Tier::Kernel | Tier::Taps));
        // One that comes back is told again, however short its absence was.
        let was_away = self.due.take().is_some();
        if self.told == Some(tier) && !(is_good && was_away) {
            return;
        }
        if is_change && !is_good {
            self.due = Some(Instant::now() + SETTLING);
            return;
        }
        self.told = Some(tier);
        self.tell(tier, &status);
    }

    fn tell(&self, tier: Option<Tier>, status: &Status) {
        let way = tier.map_or("no carrier", describe);
        match reason(tier, status) {
            "" => log::info!("{}: {way}", self.name),
            reason => log::info!("{}: {way}: {reason}", self.name),
        }
        let is_limited = tier.is_some_and(|tier| tier != Tier::Kernel);
        if let Some(max) = status.max_mtu.filter(|max| is_limited && self.mtu > *max) {
            log::warn!(
                "{}: its MTU is {}, and the link drops what is longer than {max}; give --mtu {max}",
                self.name,
                self.mtu
            );
        }
    }
}

/// How frames go.
fn describe(tier: Tier) -> &'static str {
    match tier {
        Tier::Kernel => "frames go through the kernel (panel)",
        Tier::Taps => "frames go from tap to tap",
        Tier::SuperFrames => "frames go as super-frames",
        Tier::Segmented => "frames are segmented here",
        Tier::Other => "frames go in a way of the transport's own",
    }
}
