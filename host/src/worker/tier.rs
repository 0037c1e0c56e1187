//! Which tier of the data plane a link is on, and why not a better one.
//!
//! The states of the pump's two links decide the tier; the link's status adds the reason. Each
//! change is logged in one line at level info. Two ends take a moment to negotiate, so a lesser
//! tier is logged only when it has lasted for `SETTLING`.

use std::time::{Duration, Instant};

use vdens_plugin_kit::{Link, MAX_LEGACY_MTU, Offloads, Status, Tier};

/// How long a tier must have lasted to be logged, unless hardly any is better.
const SETTLING: Duration = Duration::from_millis(250);

/// The tier of the link `far`, whose opposite is `near`; `None` without a carrier. `status` is that
/// of `far`.
pub(crate) fn tier(near: &dyn Link, far: &dyn Link, status: &Status) -> Option<Tier> {
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
pub(crate) fn reason(tier: Option<Tier>, status: &Status) -> &str {
    match tier {
        Some(Tier::Kernel) => "",
        None => &status.reason,
        _ if !status.reason.is_empty() => &status.reason,
        Some(Tier::Segmented) => "the transport takes no super-frames",
        Some(_) => "the transport does not use the panel",
    }
}

/// Logs the tier of one link.
#[derive(Debug)]
pub(crate) struct Watch {
    name: String,
    /// The tier that was logged last, if one was.
    logged: Option<Option<Tier>>,
    /// When to look again.
    due: Option<Instant>,
    /// The MTU in bytes of the interface at the near side; 0 if there is none.
    mtu: u32,
}

impl Watch {
    /// For the link of that name in the log.
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            logged: None,
            due: None,
            mtu: 0,
        }
    }

    /// Also warns when the link drops frames that an interface with this MTU sends.
    #[must_use]
    pub(crate) fn with_mtu(self, mtu: u32) -> Self {
        Self { mtu, ..self }
    }

    /// When [`Watch::look`] is to be called.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Compares the tier with the one logged last, because a state has changed or it is time.
    pub(crate) fn look(&mut self, near: &dyn Link, far: &dyn Link, is_change: bool) {
        if !log::log_enabled!(log::Level::Info) && self.mtu <= MAX_LEGACY_MTU {
            return;
        }
        let status = far.status();
        let tier = tier(near, far, &status);
        let is_good = matches!(tier, Some(Tier::Kernel | Tier::Taps));
        // A good tier that comes back is logged again, however short its absence was.
        let was_away = self.due.take().is_some();
        if self.logged == Some(tier) && !(is_good && was_away) {
            return;
        }
        if is_change && !is_good {
            self.due = Some(Instant::now() + SETTLING);
            return;
        }
        self.logged = Some(tier);
        self.log(tier, &status);
    }

    fn log(&self, tier: Option<Tier>, status: &Status) {
        let way = tier.map_or("no carrier", describe);
        match reason(tier, status) {
            "" => log::info!("{}: {way}", self.name),
            reason => log::info!("{}: {way}: {reason}", self.name),
        }
        let is_limited = tier.is_some_and(|tier| tier != Tier::Kernel);
        if let Some(max) = status.max_mtu.filter(|max| is_limited && self.mtu > *max) {
            log::warn!(
                "{}: its MTU is {}, and the link drops frames longer than {max}; give --mtu {max}",
                self.name,
                self.mtu
            );
        }
    }
}

/// The way that frames take.
fn describe(tier: Tier) -> &'static str {
    match tier {
        Tier::Kernel => "frames go through the kernel (panel)",
        Tier::Taps => "frames go from tap to tap",
        Tier::SuperFrames => "frames go as super-frames",
        Tier::Segmented => "frames are segmented here",
        Tier::Other => "frames take a way of the transport's own",
    }
}
