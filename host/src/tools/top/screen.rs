//! What `vdectl top` shows: a line for each link.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line as Words;
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, Table};

use super::rates::{Moving, Order, Rate, Rates};
use crate::output::{Line, Text};

/// The least width of a link's name.
const NAME: u16 = 24;

/// The width of a number with its prefix.
const NUMBER: u16 = 9;

/// The numbers' columns.
const NUMBERS: [&str; 5] = ["IN bit/s", "IN pkt/s", "OUT bit/s", "OUT pkt/s", "DROP/s"];

/// The widths of a link's name, its state, and the sparkline.
const WIDTHS: [u16; 3] = [NAME, 10, 20];

/// What is shown, and how.
#[derive(Debug, Default)]
pub(super) struct View {
    pub rates: Rates,
    pub order: Order,
    /// How many links have been scrolled away.
    pub first: usize,
}

impl View {
    /// Draws everything.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, body, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.order.sort(&mut self.rates.links);
        let links = &self.rates.links;
        let height = usize::from(body.height.saturating_sub(1));
        self.first = self.first.min(links.len().saturating_sub(height));
        let total = links.iter().fold(Rate::default(), |sum, link| Rate {
            bits: sum.bits + link.received.bits + link.sent.bits,
            frames: sum.frames + link.received.frames + link.sent.frames,
            dropped: sum.dropped + link.dropped(),
        });
        let down = links.iter().filter(|link| link.state != "up").count();
        let summary = format!(
            "{} links, {down} down; all together {}bit/s, {}pkt/s, {}drops/s",
            links.len(),
            short(total.bits),
            short(total.frames),
            short(total.dropped)
        );
        frame.render_widget(Paragraph::new(summary), head);
        let keys =
            Words::from("q quit   order: b bits  p packets  d drops  n name   arrows scroll");
        frame.render_widget(Paragraph::new(keys), foot);
        let shown = links.iter().skip(self.first).take(height);
        self.table(frame, body, &shown.collect::<Vec<_>>());
    }

    fn table(&self, frame: &mut Frame<'_>, area: Rect, links: &[&Moving]) {
        let [name, state, history] = WIDTHS;
        let [table, sparks] =
            Layout::horizontal([Constraint::Min(0), Constraint::Length(history)]).areas(area);
        let sorted = match self.order {
            Order::Name => None,
            Order::Bits => Some("bit/s"),
            Order::Frames => Some("pkt/s"),
            Order::Drops => Some("DROP/s"),
        };
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let heads = ["LINK", "STATE"].into_iter().chain(NUMBERS).map(|head| {
            let is_key = sorted.map_or(head == "LINK", |sorted| head.ends_with(sorted));
            let style = if is_key {
                bold.add_modifier(Modifier::UNDERLINED)
            } else {
                bold
            };
            let width = if NUMBERS.contains(&head) {
                usize::from(NUMBER)
            } else {
                0
            };
            Cell::from(format!("{head:>width$}")).style(style)
        });
        let rows = links.iter().map(|link| {
            let cells = cells(link).into_iter().map(Cell::from);
            let is_up = link.state == "up";
            let style = if is_up {
                Style::new()
            } else {
                Style::new().fg(Color::Red)
            };
            Row::new(cells).style(style)
        });
        let widths = [Constraint::Min(name), Constraint::Length(state)];
        let widths = widths
            .into_iter()
            .chain([Constraint::Length(NUMBER); NUMBERS.len()]);
        frame.render_widget(Table::new(rows, widths).header(Row::new(heads)), table);
        for (number, link) in (1..).zip(links) {
            let line = Rect {
                y: sparks.y.saturating_add(number),
                height: 1,
                ..sparks
            };
            let surplus = link.history.len().saturating_sub(usize::from(sparks.width));
            let latest = link.history.iter().skip(surplus).copied();
            let line = line.intersection(sparks);
            frame.render_widget(
                Sparkline::default().data(latest.collect::<Vec<u64>>()),
                line,
            );
        }
    }
}

/// The cells of a link's line.
fn cells(link: &Moving) -> [String; 2 + NUMBERS.len()] {
    let number = |value| format!("{:>width$}", short(value), width = usize::from(NUMBER));
    [
        Line(&link.link).to_string(),
        Line(&link.state).to_string(),
        number(link.received.bits),
        number(link.received.frames),
        number(link.sent.bits),
        number(link.sent.frames),
        number(link.dropped()),
    ]
}

/// The links as lines, without a screen.
pub(super) fn lines(links: &[Moving]) -> Text {
    let width = links.iter().map(|link| link.link.chars().count()).max();
    let width = width.unwrap_or_default().max("LINK".len());
    let line = |[link, state, numbers @ ..]: [String; 2 + NUMBERS.len()]| {
        format!("{link:width$}  {state:10} {}", numbers.join(" "))
    };
    let [a, b, c, d, e] =
        NUMBERS.map(|head| format!("{head:>width$}", width = usize::from(NUMBER)));
    let head = line(["LINK".to_owned(), "STATE".to_owned(), a, b, c, d, e]);
    [head]
        .into_iter()
        .chain(links.iter().map(|link| line(cells(link))))
        .collect()
}

/// A number of three digits or more, with its decimal prefix.
fn short(value: f64) -> String {
    let mut value = value;
    for prefix in ["", "k", "M", "G", "T"] {
        // What would be shown as 1000.
        if value < 999.95 {
            return match prefix {
                "" => format!("{value:.0} "),
                prefix => format!("{value:.1} {prefix}"),
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} P")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn view(count: usize) -> View {
        let link = |number: usize| Moving {
            link: format!("r{number:02}:eth0"),
            state: if number == 1 { "no carrier" } else { "up" }.to_owned(),
            vnl: "ptp:///p".to_owned(),
            received: Rate {
                bits: 1_234_567.0 * number as f64,
                frames: 100.0,
                dropped: 2.0,
            },
            sent: Rate::default(),
            history: (0..200).collect(),
        };
        let mut view = View::default();
        view.rates.links = (0..count).map(link).collect();
        view
    }

    fn drawn(view: &mut View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        (0..height).map(line).collect()
    }

    #[test]
    fn the_busiest_links_are_on_top_with_their_rates_and_their_past() {
        let screen = drawn(&mut view(30), 110, 10);
        assert!(
            screen[0].starts_with("30 links, 1 down; all together 537.0 Mbit/s"),
            "{screen:#?}"
        );
        assert!(screen[1].starts_with("LINK"), "{screen:#?}");
        assert!(screen[2].starts_with("r29:eth0"), "{screen:#?}");
        assert!(screen[2].contains(" up "), "{screen:#?}");
        assert!(screen[2].contains(" 35.8 M"), "{screen:#?}");
        assert!(screen[2].ends_with('█'), "{screen:#?}");
        assert!(screen[9].starts_with("q quit"), "{screen:#?}");
    }

    #[test]
    fn it_scrolls_to_the_end_and_fits_any_terminal() {
        let mut view = view(30);
        view.order = Order::Name;
        view.first = 1000;
        let screen = drawn(&mut view, 110, 10);
        assert!(screen[8].starts_with("r29:eth0"), "{screen:#?}");
        assert_eq!(view.first, 23);
        for (width, height) in [(1, 1), (20, 3), (300, 100), (40, 2)] {
            drawn(&mut view, width, height);
        }
    }

    #[test]
    fn numbers_have_prefixes() {
        for (value, shown) in [
            (0.0, "0 "),
            (999.4, "999 "),
            (999.99, "1.0 k"),
            (1_500.0, "1.5 k"),
            (999_960.0, "1.0 M"),
            (9.4e9, "9.4 G"),
            (f64::from(u32::MAX).powi(2), "18446.7 P"),
        ] {
            assert_eq!(short(value), shown);
        }
    }
}
