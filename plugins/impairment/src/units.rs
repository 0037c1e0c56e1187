//! Times, rates, sizes and percentages, with the units of tc(8).

use std::time::Duration;

use vdens_plugin_kit::{Error, Result};

/// A number and its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
    Some((number.parse().ok()?, unit))
}

fn bad(key: &str, text: &str, right: &str) -> Error {
    Error::usage(format!(
        "bad value '{}' for key '{key}'",
        text.escape_debug()
    ))
    .hint(format!("write {right}"))
}

/// A time, such as `50ms`, up to an hour.
///
/// # Errors
/// `text` is something else.
pub(crate) fn time(key: &str, text: &str) -> Result<Duration> {
    let seconds = split(text).and_then(|(number, unit)| {
        let scale = match unit {
            "s" | "sec" | "secs" => 1.0,
            "ms" | "msec" | "msecs" => 1e-3,
            "us" | "usec" | "usecs" => 1e-6,
            "ns" | "nsec" | "nsecs" => 1e-9,
            _ => return None,
        };
        Some(number * scale).filter(|seconds| *seconds <= 3600.0)
    });
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| bad(key, text, "a time up to an hour, such as 50ms, 2s or 100us"))
}

/// A rate in bits per second, such as `10mbit`.
///
/// # Errors
/// `text` is something else, or less than a bit per second.
pub(crate) fn rate(key: &str, text: &str) -> Result<f64> {
    let rate = split(text).and_then(|(number, unit)| {
        let unit = unit.to_ascii_lowercase();
        let (prefix, bits) = match unit.strip_suffix("bit").or(unit.strip_suffix("bps")) {
            None if unit.is_empty() => ("", 1.0),
            None => return None,
            Some(prefix) if unit.ends_with("bps") => (prefix, 8.0),
            Some(prefix) => (prefix, 1.0),
        };
        let scale = match prefix {
            "" => 1.0,
            "k" => 1e3,
            "m" => 1e6,
            "g" => 1e9,
            "t" => 1e12,
            "ki" => f64::from(1 << 10),
            "mi" => f64::from(1 << 20),
            "gi" => f64::from(1 << 30),
            _ => return None,
        };
        Some(number * scale * bits).filter(|rate| (1.0..=1e13).contains(rate))
    });
    rate.ok_or_else(|| {
        let right = "a rate such as 10mbit (bits per second) or 1mbps (bytes per second)";
        bad(key, text, right)
    })
}

/// A size in bytes, such as `32kb`.
///
/// # Errors
/// `text` is something else.
pub(crate) fn size(key: &str, text: &str) -> Result<f64> {
    let bytes = split(text).and_then(|(number, unit)| {
        let scale = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "k" | "kb" => f64::from(1 << 10),
            "m" | "mb" => f64::from(1 << 20),
            "kbit" => 1e3 / 8.0,
            "mbit" => 1e6 / 8.0,
            _ => return None,
        };
        Some(number * scale).filter(|bytes| *bytes <= 1e9)
    });
    bytes.ok_or_else(|| bad(key, text, "a size in bytes, such as 1500b, 32kb or 1mb"))
}

/// A percentage as a number from 0 to 1.
///
/// # Errors
/// `text` is something else.
pub(crate) fn percentage(key: &str, text: &str) -> Result<f64> {
    let number = text.strip_suffix('%').and_then(split);
    let percent = number.filter(|(number, rest)| rest.is_empty() && *number <= 100.0);
    percent
        .map(|(percent, _)| percent / 100.0)
        .ok_or_else(|| bad(key, text, "a percentage from 0% to 100%, such as 0.5%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_tc() {
        for (text, microseconds) in [("50ms", 50_000), ("1.5s", 1_500_000), ("20usec", 20)] {
            let expected = Duration::from_micros(microseconds);
            assert_eq!(time("delay", text).unwrap(), expected, "{text}");
        }
        for (text, bits) in [
            ("10mbit", 10e6),
            ("1Gbit", 1e9),
            ("1mbps", 8e6),
            ("1kibit", 1024.0),
            ("9600", 9600.0),
        ] {
            assert_eq!(rate("rate", text).unwrap(), bits, "{text}");
        }
        for (text, bytes) in [("1500", 1500.0), ("32kb", 32_768.0), ("8kbit", 1000.0)] {
            assert_eq!(size("burst", text).unwrap(), bytes, "{text}");
        }
        for (text, share) in [("1%", 0.01), ("0%", 0.0), ("100%", 1.0), ("12.5%", 0.125)] {
            assert_eq!(percentage("loss", text).unwrap(), share, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        let refused = |result: Result<()>, example: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(example), "{error}");
        };
        for text in [
            "", "50", "ms", "-1ms", "1e3s", "2h", "3601s", "1.2.3ms", "NaNs", "é",
        ] {
            refused(time("delay", text).map(drop), "50ms");
        }
        for text in [
            "",
            "0",
            "-1mbit",
            "10mb",
            "1xbit",
            "infbit",
            "99999tbit",
            "mbit",
        ] {
            refused(rate("rate", text).map(drop), "10mbit");
        }
        for text in ["", "kb", "1gib", "-1", "2000mb"] {
            refused(size("burst", text).map(drop), "32kb");
        }
        for text in ["", "%", "1", "101%", "-1%", "1%%", "a%"] {
            refused(percentage("loss", text).map(drop), "0.5%");
        }
    }
}
