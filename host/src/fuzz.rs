//! What must be true of parsers that nothing outside this crate uses, for the fuzzer (tests/fuzz).

use std::net::IpAddr;

/// What a network says to `--auto`: DHCP, router advertisements, DHCPv6.
///
/// # Errors
/// A property that does not hold.
pub fn auto(message: &[u8]) -> Result<(), String> {
    for names in crate::namespace::auto::names_in(message) {
        // They become lines of a resolv.conf.
        for server in &names.servers {
            let address = server
                .split_once('%')
                .map_or(&**server, |(address, _)| address);
            address
                .parse::<IpAddr>()
                .map_err(|error| format!("{server:?}: {error}"))?;
        }
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let bad = |domain: &&String| domain.is_empty() || !domain.bytes().all(is_word);
        if let Some(domain) = names.search.iter().find(bad) {
            return Err(format!("{domain:?} is no domain"));
        }
    }
    Ok(())
}
