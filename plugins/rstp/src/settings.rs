//! What an administrator sets, of a bridge and of a port.

use crate::id::{Mac, Time, Times};

/// Bridge priorities are multiples of this: the lower bits of the identifier are the system's own.
const PRIORITY_STEP: u16 = 4096;
/// Port priorities are multiples of this.
const PORT_PRIORITY_STEP: u8 = 16;

/// Settings that the standard does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A bridge's priority.
    #[error("a bridge's priority is a multiple of {PRIORITY_STEP}, up to 61440")]
    Priority,
    /// A port's priority.
    #[error("a port's priority is a multiple of {PORT_PRIORITY_STEP}, up to 240")]
    PortPriority,
    /// A port's number.
    #[error("a port's number is 0 to 4095")]
    PortNumber,
    /// A path cost.
    #[error("a path cost is 1 to 200000000")]
    Cost,
    /// The hello time.
    #[error("the hello time is 1 to 10 seconds")]
    Hello,
    /// The maximum age.
    #[error("the maximum age is 6 to 40 seconds")]
    MaxAge,
    /// The forward delay.
    #[error("the forward delay is 4 to 30 seconds")]
    ForwardDelay,
    /// The transmit hold count.
    #[error("the hold count is 1 to 10")]
    HoldCount,
    /// Times that do not go together (17.14).
    #[error("the times must satisfy 2*(forward delay-1) >= maximum age >= 2*(hello time+1)")]
    Relation,
}

/// The settings of a bridge (17.13, 17.14).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The bridge's MAC address, which no other bridge in the network may have.
    pub mac: Mac,
    /// The smallest in the network makes the root. A multiple of 4096.
    pub priority: u16,
    /// Seconds between two BPDUs.
    pub hello: u8,
    /// Seconds after which information is discarded.
    pub max_age: u8,
    /// Seconds in discarding and learning without a handshake.
    pub forward_delay: u8,
    /// BPDUs that a port may send in one second.
    pub hold_count: u8,
}

impl Settings {
    /// The standard's defaults.
    #[must_use]
    pub fn new(mac: Mac) -> Self {
        Self {
            mac,
            priority: 32_768,
            hello: 2,
            max_age: 20,
            forward_delay: 15,
            hold_count: 6,
        }
    }

    /// Checks all of them.
    ///
    /// # Errors
    /// The first that is not allowed.
    pub fn check(&self) -> Result<(), SettingsError> {
        let (hello, max_age, delay) = (self.hello, self.max_age, self.forward_delay);
        let rules = [
            (
                self.priority.is_multiple_of(PRIORITY_STEP),
                SettingsError::Priority,
            ),
            ((1..=10).contains(&hello), SettingsError::Hello),
            ((6..=40).contains(&max_age), SettingsError::MaxAge),
            ((4..=30).contains(&delay), SettingsError::ForwardDelay),
            (
                (1..=10).contains(&self.hold_count),
                SettingsError::HoldCount,
            ),
        ];
        if let Some((_, error)) = rules.into_iter().find(|(holds, _)| !holds) {
            return Err(error);
        }
        match 2 * (delay - 1) >= max_age && max_age >= 2 * (hello + 1) {
            true => Ok(()),
            false => Err(SettingsError::Relation),
        }
    }

    /// The times that the bridge sets as the root.
    pub(crate) fn times(&self) -> Times {
        Times {
            message_age: Time(0),
            max_age: Time::from_secs(self.max_age),
            hello: Time::from_secs(self.hello),
            forward_delay: Time::from_secs(self.forward_delay),
        }
    }
}

/// The settings of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSettings {
    /// Whether the port is used at all.
    pub is_enabled: bool,
    /// What the way through this port costs: 20,000 is that of 1 Gbit/s, 2,000 of 10 Gbit/s.
    pub cost: u32,
    /// Of two ways that cost the same, the smaller is preferred. A multiple of 16.
    pub priority: u8,
    /// Whether the port forwards at once, until a BPDU shows that there is a bridge behind it.
    pub admin_edge: bool,
    /// Whether a port that hears no BPDU for 3 seconds becomes an edge port.
    pub auto_edge: bool,
    /// Whether there is at most one bridge behind the port: only then is there a handshake.
    pub is_point_to_point: bool,
    /// Whether a BPDU disables the port, until its link goes down or it is released.
    pub guard: bool,
}

impl Default for PortSettings {
    fn default() -> Self {
        Self {
            is_enabled: true,
            cost: 20_000,
            priority: 128,
            admin_edge: true,
            auto_edge: true,
            is_point_to_point: true,
            guard: false,
        }
    }
}

impl PortSettings {
    /// Checks all of them.
    ///
    /// # Errors
    /// The first that is not allowed.
    pub fn check(&self) -> Result<(), SettingsError> {
        if !self.priority.is_multiple_of(PORT_PRIORITY_STEP) {
            return Err(SettingsError::PortPriority);
        }
        match (1..=200_000_000).contains(&self.cost) {
            true => Ok(()),
            false => Err(SettingsError::Cost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        let with = |change: fn(&mut Settings)| {
            let mut settings = Settings::new([2; 6]);
            change(&mut settings);
            settings.check()
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert_eq!(with(|s| s.priority = 0), Ok(()));
        assert_eq!(with(|s| s.priority = 1), Err(SettingsError::Priority));
        assert_eq!(with(|s| s.hello = 0), Err(SettingsError::Hello));
        assert_eq!(with(|s| s.max_age = 5), Err(SettingsError::MaxAge));
        assert_eq!(
            with(|s| s.forward_delay = 31),
            Err(SettingsError::ForwardDelay)
        );
        assert_eq!(with(|s| s.hold_count = 0), Err(SettingsError::HoldCount));
        assert_eq!(with(|s| s.hello = 10), Err(SettingsError::Relation));
        assert_eq!(with(|s| s.forward_delay = 10), Err(SettingsError::Relation));
        assert_eq!(with(|s| s.forward_delay = 11), Ok(()));
    }

    #[test]
    fn settings_of_ports_are_checked() {
        let with = |change: fn(&mut PortSettings)| {
            let mut settings = PortSettings::default();
            change(&mut settings);
            settings.check()
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert_eq!(with(|s| s.priority = 8), Err(SettingsError::PortPriority));
        assert_eq!(with(|s| s.cost = 0), Err(SettingsError::Cost));
    }
}
