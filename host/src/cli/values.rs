//! The values of options.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use crate::sys::netlink::Mac;
use crate::worker::reconnecting::Wait;

/// A value that may be for one interface: `N:VALUE`. An IPv6 address can have both forms
/// (`1:fd00::1/64`). Then N is the interface's number if there is such an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbered<T> {
    whole: Option<T>,
    numbered: Option<(usize, T)>,
}

impl<T: Copy> Numbered<T> {
    /// The value and the interface's number, if it has one. There are `count` interfaces.
    ///
    /// # Errors
    /// There is no interface of that number; the error is the number.
    pub(crate) fn resolve(self, count: usize) -> Result<(Option<usize>, T), usize> {
        match (self.numbered, self.whole) {
            (Some((number, value)), _) if number < count => Ok((Some(number), value)),
            (_, Some(value)) => Ok((None, value)),
            (Some((number, _)), None) => Err(number),
            (None, None) => Err(0),
        }
    }
}

pub(super) fn numbered<T: FromStr>(text: &str) -> Result<Numbered<T>, T::Err> {
    let numbered = text
        .split_once(':')
        .and_then(|(number, value)| Some((number.parse().ok()?, value.parse().ok()?)));
    match (text.parse(), numbered) {
        (Err(error), None) => Err(error),
        (whole, numbered) => Ok(Numbered {
            whole: whole.ok(),
            numbered,
        }),
    }
}

/// An address with the prefix length of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr(pub IpNet);

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("'{address}' is no IP address"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let net = prefix
            .parse()
            .ok()
            .and_then(|prefix| IpNet::new(address, prefix).ok());
        net.map(Self).ok_or_else(|| {
            format!("a prefix length from 0 to {most} is wanted, as in {address}/24")
        })
    }
}

/// An MTU in bytes: 68 (the least that IPv4 allows, RFC 791) to 65521 (the most that a tap takes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mtu(pub u32);

impl FromStr for Mtu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(mtu) if (68..=65_521).contains(&mtu) => Ok(Self(mtu)),
            _ => Err("an MTU is a number from 68 to 65521".into()),
        }
    }
}

/// A unicast Ethernet address, `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MacAddress(pub Mac);

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Vec<u8> = text
            .split(':')
            .map(|byte| match byte.len() {
                1 | 2 => u8::from_str_radix(byte, 16).ok(),
                _ => None,
            })
            .collect::<Option<_>>()
            .unwrap_or_default();
        match <Mac>::try_from(bytes) {
            Ok(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(Self(mac)),
            Ok(_) => Err("it is no unicast address; 02:00:00:00:00:01 would do".into()),
            Err(_) => Err("six hexadecimal bytes are wanted, such as 02:00:00:00:00:01".into()),
        }
    }
}

/// A size in bytes: a number, and `k`, `M` or `G` for powers of 1024.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(['k', 'K', 'M', 'G']);
    let scale = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => 0,
    };
    let size = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(scale));
    size.filter(|size| *size > 0)
        .ok_or_else(|| "a size in bytes is wanted, such as 500k, 100M or 1G".to_owned())
}

pub(super) fn wait(text: &str) -> Result<Wait, String> {
    if text.is_empty() {
        return Ok(Wait::Meanwhile);
    }
    seconds(text).map(Wait::AtMost)
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::try_from_secs_f64);
    match seconds {
        Some(Ok(time)) => Ok(time),
        _ => Err("a number of seconds is wanted, such as 10".into()),
    }
}

pub(super) fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("permission bits are an octal number, such as 0660".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_name_their_interface() {
        let number =
            |text: &str, count| numbered::<Cidr>(text).unwrap().resolve(count).map(|n| n.0);
        assert_eq!(number("10.0.0.1/24", 1), Ok(None));
        assert_eq!(number("1:10.0.0.1/24", 2), Ok(Some(1)));
        assert_eq!(number("1:10.0.0.1/24", 1), Err(1));
        assert_eq!(number("1:fd00::1/64", 2), Ok(Some(1)));
        assert_eq!(number("1:fd00::1/64", 1), Ok(None));
        assert_eq!(number("2001:db8::1/64", 8), Ok(None));
        assert_eq!(
            numbered::<Mtu>("2:9000").unwrap().resolve(3).unwrap().0,
            Some(2)
        );
        assert!(numbered::<Mtu>("9").is_err());
        let mac = numbered::<MacAddress>("1:02:00:00:00:00:ff").unwrap();
        assert_eq!(
            mac.resolve(2),
            Ok((Some(1), MacAddress([2, 0, 0, 0, 0, 255])))
        );
        assert!(numbered::<MacAddress>("03:00:00:00:00:01").is_err());
        assert!(numbered::<Cidr>("10.0.0.1").is_err());
        assert!(
            numbered::<Cidr>("10.0.0.1/33")
                .unwrap_err()
                .contains("0 to 32")
        );
    }
}
