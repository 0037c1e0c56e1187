//! What is too wide for a screen, in bands below each other.
//!
//! Bands are cut between columns, where few links pass, so that the whole is about as wide as a
//! screen in comparison with its height. Every other band is turned by half a turn. So a link from
//! one band to the next leaves at the side where it enters, and several links do so without
//! crossing, one around the other.

use std::collections::BTreeMap;

use super::sketch::{Drawn, Sketch};
use super::{GAP, Rect, SCREEN};

/// A picture's width in comparison with its height.
const SHAPE: f64 = 1.6;

/// The most links from one band to the next.
const LINKS: usize = 6;

/// The way from a sketch to the picture.
#[derive(Debug)]
pub(super) struct Fold {
    /// By their centres in tenths of a pixel, from left to right.
    columns: BTreeMap<i64, Column>,
    bands: Vec<Band>,
    /// The width of the widest band.
    pub width: f64,
}

/// A column of the sketch: boxes with one centre, or points that links pass.
#[derive(Clone, Copy, Debug)]
struct Column {
    left: f64,
    right: f64,
    band: usize,
}

/// A band: its edges in the sketch, and its top in the picture.
#[derive(Clone, Copy, Debug)]
struct Band {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    y: f64,
}

impl Fold {
    pub(super) fn of(sketch: &Sketch) -> Self {
        let points = sketch.links.values().flat_map(|link| &link.points);
        let points = points.map(|(x, y)| Rect {
            x: *x,
            y: *y,
            ..Rect::default()
        });
        let boxes: Vec<Rect> = sketch.boxes().chain(points).collect();
        let mut columns: BTreeMap<i64, Column> = BTreeMap::new();
        for place in &boxes {
            let column = columns.entry(key(place.x)).or_insert(Column {
                left: place.left(),
                right: place.right(),
                band: 0,
            });
            column.left = column.left.min(place.left());
            column.right = column.right.max(place.right());
        }
        cut(&mut columns, &boxes, sketch);
        let mut bands: Vec<Band> = Vec::new();
        for column in columns.values() {
            if bands.len() <= column.band {
                bands.push(Band {
                    left: column.left,
                    right: column.right,
                    top: f64::MAX,
                    bottom: f64::MIN,
                    y: 0.0,
                });
            }
            let band = &mut bands[column.band];
            band.right = band.right.max(column.right);
        }
        for place in &boxes {
            let band = &mut bands[columns[&key(place.x)].band];
            band.top = band.top.min(place.top());
            band.bottom = band.bottom.max(place.bottom());
        }
        let (mut y, mut width) = (0.0, 0.0_f64);
        for band in &mut bands {
            band.y = y;
            y += band.bottom - band.top + GAP;
            width = width.max(band.right - band.left);
        }
        Self {
            columns,
            bands,
            width,
        }
    }

    /// Where a point of the sketch, the centre of a column's box, is in the picture.
    pub(super) fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let number = self.band(x);
        let band = self.bands[number];
        let across = x - band.left;
        match is_turned(number) {
            false => (across, band.y + y - band.top),
            true => (self.width - across, band.y + band.bottom - y),
        }
    }

    /// The band of a column.
    pub(super) fn band(&self, x: f64) -> usize {
        self.columns.get(&key(x)).map_or(0, |column| column.band)
    }

    /// The edges of a column in the picture: where links from the columns before enter it, and
    /// where they leave it.
    pub(super) fn edges(&self, x: f64) -> (f64, f64) {
        let Some(Column { left, right, band }) = self.columns.get(&key(x)) else {
            return (x, x);
        };
        let edge = |x: f64| match is_turned(*band) {
            false => x - self.bands[*band].left,
            true => self.width - (x - self.bands[*band].left),
        };
        (edge(*left), edge(*right))
    }
}

/// Whether a band is turned.
pub(super) fn is_turned(band: usize) -> bool {
    band % 2 == 1
}

/// A column's key: its centre in tenths of a pixel.
fn key(x: f64) -> i64 {
    (x * 10.0).round() as i64
}

/// Gives each column its band.
fn cut(columns: &mut BTreeMap<i64, Column>, boxes: &[Rect], sketch: &Sketch) {
    let left = boxes.iter().map(Rect::left).fold(f64::MAX, f64::min);
    let right = boxes.iter().map(Rect::right).fold(f64::MIN, f64::max);
    let top = boxes.iter().map(Rect::top).fold(f64::MAX, f64::min);
    let bottom = boxes.iter().map(Rect::bottom).fold(f64::MIN, f64::max);
    let width = right - left;
    if width <= SCREEN {
        return;
    }
    let count = (width / (SHAPE * (bottom - top + GAP))).sqrt().round();
    let share = width / count.max(1.0);
    let span = |link: &Drawn| link.ends.map(|end| key(sketch.nodes[&end.node].x));
    let spans: Vec<[i64; 2]> = sketch.links.values().map(span).collect();
    let (mut band, mut passed) = (0, 0);
    for (key, column) in columns {
        let shares = ((column.right - left) / share * 0.999) as usize;
        let across = spans.iter().filter(|[from, to]| from < key && key <= to);
        if shares > passed && across.count() <= LINKS {
            (band, passed) = (band + 1, shares);
        }
        column.band = band;
    }
}
