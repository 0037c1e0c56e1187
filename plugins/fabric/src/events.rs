//! What has happened lately, for those who ask ([`vdens_switch_control::Request::Events`]).

use std::collections::VecDeque;

use vdens_switch_control::{Event, PAGE, Page};

/// How many events are kept: enough for who asks a few times a second.
const KEPT: usize = 1024;

/// The latest events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    kept: VecDeque<Event>,
    /// The number of the next one.
    next: u64,
}

impl Events {
    /// Adds an event, in a category that VDE's console has.
    pub(crate) fn push(&mut self, category: &str, text: String) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Event {
            number: self.next,
            category: category.to_owned(),
            text,
        });
        self.next += 1;
    }

    /// The events from number `from` on.
    pub(crate) fn page(&self, from: u64) -> Page<Event, u64> {
        let wanted = self.kept.iter().filter(|event| event.number >= from);
        let items: Vec<Event> = wanted.take(PAGE).cloned().collect();
        let next = items.last().map_or(self.next, |event| event.number + 1);
        Page {
            items,
            from: Some(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_come_in_parts() {
        let mut events = Events::default();
        assert_eq!(events.page(0).from, Some(0));
        for number in 0..KEPT + 10 {
            events.push("port/+", number.to_string());
        }
        let mut numbers = Vec::new();
        let mut from = 0;
        loop {
            let page = events.page(from);
            if page.items.is_empty() {
                break;
            }
            numbers.extend(page.items.iter().map(|event| event.number));
            from = page.from.unwrap();
        }
        assert_eq!(numbers, (10..KEPT as u64 + 10).collect::<Vec<_>>());
        assert_eq!(from, KEPT as u64 + 10);
    }
}
