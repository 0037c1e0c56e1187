//! What must be true of this crate's parsers whatever they read, for the fuzzer (tests/fuzz).
//!
//! Each function takes an input and says which property does not hold for it.

use std::time::Instant;

use dhcproto::{Decodable, Encodable, v4};

use crate::gateway::fuzz as gateway;
use crate::settings::Settings;
use crate::{proxy, report, wire};

/// The network of the clients.
const NETWORK: &str = "net='10.0.2.0/27'";

type Outcome = Result<(), String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    match holds {
        true => Ok(()),
        false => Err(what()),
    }
}

/// Packets of the kernel's queue, of its answers and of clients.
///
/// # Errors
/// A property that does not hold.
pub fn packets(input: &[u8]) -> Outcome {
    for held in gateway::held(input) {
        ensure(held.from.is_ipv4() == held.to.is_ipv4(), || {
            format!("{held:?} has two families")
        })?;
    }
    vdens_netfilter::errors(input);
    let mut packet = input.to_vec();
    for to in [None, Some([7; 16].into())] {
        if let Some((_, message)) = proxy::echo::request(&mut packet, to) {
            ensure(message.len() >= 8, || format!("{message:?} is too short"))?;
        }
    }
    Ok(())
}

/// Messages of clients to the DHCP servers, each with its length in two bytes before it.
///
/// # Errors
/// A property that does not hold.
pub fn dhcp(mut input: &[u8]) -> Outcome {
    let settings = Settings::parse(NETWORK).map_err(|error| error.to_string())?;
    let mut leases = gateway::leases(&settings).ok_or("there is no network")?;
    let now = Instant::now();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (message, rest) = rest.split_at(length);
        input = rest;
        gateway::answer6(message, &settings);
        let Ok(message) = v4::Message::from_bytes(message) else {
            continue;
        };
        let Some(reply) = leases.answer(&message, now) else {
            continue;
        };
        let bytes = reply
            .to_vec()
            .map_err(|error| format!("{reply:?}: {error}"))?;
        let again = v4::Message::from_bytes(&bytes).map_err(|error| error.to_string())?;
        ensure(again.yiaddr() == reply.yiaddr(), || {
            format!("{reply:?} is not read again")
        })?;
        leases.check()?;
    }
    Ok(())
}

/// Messages between the processes, and requests at run time.
///
/// # Errors
/// A property that does not hold.
pub fn messages(input: &[u8]) -> Outcome {
    wire::fuzz(input)?;
    report::fuzz(input)?;
    proxy::control::fuzz(input)
}

/// The keys of a VNL, forwards and a resolv.conf.
///
/// # Errors
/// A property that does not hold.
pub fn settings(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    crate::resolv::Resolv::parse(&text);
    let text = text.replace('\n', "");
    match Settings::parse(&text) {
        Ok(settings) => {
            let json = serde_json::to_string(&settings).map_err(|error| error.to_string())?;
            let again: Settings = serde_json::from_str(&json).map_err(|error| error.to_string())?;
            ensure(again == settings, || {
                format!("{settings:?} becomes {again:?}")
            })?;
            let ours = settings.interface();
            ensure(ours.len() <= 5, || format!("{ours:?} are too many"))
        }
        Err(error) => {
            let message = error.to_string();
            let is_one_line = !message.is_empty() && !message.contains(char::is_control);
            ensure(is_one_line, || format!("not one line: {message:?}"))
        }
    }
}

/// That a message, if the input is one, is read as it was written.
pub(crate) fn again<T>(input: &[u8]) -> Outcome
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    if let Ok(message) = serde_json::from_slice::<T>(input) {
        let bytes = serde_json::to_vec(&message).map_err(|error| error.to_string())?;
        let read = serde_json::from_slice::<T>(&bytes).map_err(|error| error.to_string())?;
        ensure(read == message, || format!("{message:?} becomes {read:?}"))?;
    }
    Ok(())
}
