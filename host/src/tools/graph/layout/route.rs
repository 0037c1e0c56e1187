//! The ways of links.
//!
//! A link begins at the row of its interface. From there it runs level to the edge of its column,
//! and level through each column on its way, because other boxes may be above and below. In the
//! gaps between the columns it changes its height. From one band to the next it has a lane of its
//! own beside the picture.

use std::collections::BTreeMap;

use super::fold::{Fold, is_turned};
use super::sketch::{Drawn, Sketch};
use super::{LINE, PADDING, Picture};
use crate::tools::graph::model::End;
use crate::tools::graph::rows;

/// From one lane to the next, and to the picture.
const LANE: f64 = 10.0;

/// What the layout leaves free above and below a link, nearly.
const FREE: f64 = 10.0;

/// Where a link passes a column.
#[derive(Clone, Copy, Debug)]
struct Stop {
    band: usize,
    enters: f64,
    leaves: f64,
    y: f64,
}

impl Picture {
    /// Draws a part as its sketch has it, folded.
    pub(super) fn draw(&mut self, sketch: &Sketch, fold: &Fold) {
        for (index, place) in &sketch.nodes {
            let moved = &mut self.nodes[*index].place;
            (moved.x, moved.y) = fold.place((place.x, place.y));
        }
        let mut ways: BTreeMap<usize, Vec<Stop>> = BTreeMap::new();
        // The links that leave each band, and at what height.
        let mut leaving: BTreeMap<usize, Vec<(f64, usize)>> = BTreeMap::new();
        for (index, link) in &sketch.links {
            if let (Some(place), Some((moved, _))) = (link.label, &mut self.links[*index].label) {
                (moved.x, moved.y) = fold.place((place.x, place.y));
            }
            let [left, right] = link.ends;
            if left.node == right.node {
                self.links[*index].way = self.around(link, sketch, fold);
                continue;
            }
            let stops = self.stops(link, sketch, fold);
            for pair in stops.windows(2).filter(|pair| pair[0].band != pair[1].band) {
                leaving
                    .entry(pair[0].band)
                    .or_default()
                    .push((pair[0].y, *index));
            }
            ways.insert(*index, stops);
        }
        // The lowest has the innermost lane.
        let mut lanes = BTreeMap::new();
        for (band, mut links) in leaving {
            links.sort_by(|a, b| b.0.total_cmp(&a.0));
            for (number, (_, index)) in links.iter().enumerate() {
                let out = (number + 1) as f64 * LANE;
                let lane = if is_turned(band) {
                    -out
                } else {
                    fold.width + out
                };
                lanes.insert((*index, band), lane);
            }
        }
        for (index, stops) in ways {
            let mut way = Vec::new();
            for (number, stop) in stops.iter().enumerate() {
                if let Some(before) = number.checked_sub(1).map(|number| &stops[number])
                    && let Some(lane) = lanes.get(&(index, before.band))
                    && before.band != stop.band
                {
                    way.extend([(*lane, before.y), (*lane, stop.y)]);
                }
                way.extend([(stop.enters, stop.y), (stop.leaves, stop.y)]);
            }
            way.dedup();
            self.links[index].way = way;
        }
    }

    /// The height of an end's row.
    fn row(&self, end: End) -> f64 {
        let node = &self.nodes[end.node];
        match rows::of_interface(&node.rows, end.interface) {
            Some(row) => node.place.top() + PADDING / 2.0 + (row as f64 + 0.5) * LINE,
            None => node.place.y,
        }
    }

    fn stops(&self, link: &Drawn, sketch: &Sketch, fold: &Fold) -> Vec<Stop> {
        let [from, to] = link.ends.map(|end| {
            let x = sketch.nodes[&end.node].x;
            let (enters, leaves) = fold.edges(x);
            let stop = Stop {
                band: fold.band(x),
                enters,
                leaves,
                y: self.row(end),
            };
            (stop, self.nodes[end.node].place)
        });
        let side = |(stop, place): &(Stop, super::Rect), is_left: bool| match is_left
            != is_turned(stop.band)
        {
            true => place.left(),
            false => place.right(),
        };
        let first = Stop {
            enters: side(&from, false),
            ..from.0
        };
        let last = Stop {
            leaves: side(&to, true),
            ..to.0
        };
        let step = (last.y - first.y) / (link.points.len() + 1) as f64;
        let inner = link.points.iter().zip(1..).map(|(&(x, y), number)| {
            let (enters, leaves) = fold.edges(x);
            let (_, y) = fold.place((x, y));
            let straight = first.y + step * f64::from(number);
            // The layout's place is as if the rows of both boxes were one. A label stays there.
            let y = match link.label {
                Some(_) => y,
                None => straight.clamp(y - FREE, y + FREE),
            };
            Stop {
                band: fold.band(x),
                enters,
                leaves,
                y,
            }
        });
        // In a column without boxes there is nothing to pass.
        let inner = inner.filter(|stop| stop.enters != stop.leaves);
        [first].into_iter().chain(inner).chain([last]).collect()
    }

    /// The way of a loop, beside its box, in the room that the layout left for it.
    fn around(&self, link: &Drawn, sketch: &Sketch, fold: &Fold) -> Vec<(f64, f64)> {
        let [from, to] = link.ends;
        let place = self.nodes[from.node].place;
        let [a, b] = [self.row(from), self.row(to)];
        let (side, out) = match is_turned(fold.band(sketch.nodes[&from.node].x)) {
            false => (place.right(), place.right() + 2.0 * PADDING),
            true => (place.left(), place.left() - 2.0 * PADDING),
        };
        vec![(side, a), (out, a), (out, b), (side, b)]
    }
}
