//! Two builds, compared.
//!
//! Theory of operation. Both are measured by turns in the same rounds ([`bench`](crate::bench)),
//! and only what is ours. A figure is worse by more than the scatter if no round of the new build
//! reached the worst one of the old, and better if the reverse is true. With three rounds each,
//! chance alone does that to one figure in twenty, either way; so both are counted.

use std::fmt::Write;

use crate::report::figure;
use crate::results::{Better, Results, Summary};

/// All figures that both builds have, for a terminal; those that have become worse once more.
pub(crate) fn text(new: &Results, old: &Results) -> String {
    let mut out = format!(
        "{:<64} {:>9} {:>9} {:>7}  range\n",
        "", "old", "new", "new/old"
    );
    let (mut worse, mut better, mut all) = (String::new(), 0, 0);
    for group in &new.groups {
        for row in &group.rows {
            for measure in &group.measures {
                let of = |results: &Results| results.summary(group.id, row.id, &measure.key);
                let (Some(before), Some(after)) = (of(old), of(new)) else {
                    continue;
                };
                let ratio = new.ratio_to(old, group.id, row.id, &measure.key);
                let ratio = ratio.map_or_else(String::new, |ratio| {
                    format!(
                        "{:>7}  {} – {}",
                        figure(ratio.median),
                        figure(ratio.least),
                        figure(ratio.most)
                    )
                });
                let name = format!(
                    "{}/{}: {} [{}]",
                    group.id, row.id, measure.key, measure.unit
                );
                let line = format!(
                    "{name:<64} {:>9} {:>9} {ratio}\n",
                    figure(before.median),
                    figure(after.median)
                );
                out.push_str(&line);
                all += 1;
                if is_worse(measure.better, before, after) {
                    worse.push_str(&line);
                }
                better += usize::from(is_worse(measure.better, after, before));
            }
        }
    }
    let count = worse.lines().count();
    let _ = writeln!(
        out,
        "\nOf {all} figures:\nBetter by more than the scatter: {better}\n\
         Worse by more than the scatter: {count}\n{worse}"
    );
    out
}

fn is_worse(better: Better, before: Summary, after: Summary) -> bool {
    match better {
        Better::More => after.most < before.least,
        Better::Less => after.least > before.most,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worse_is_beyond_every_round_of_the_old() {
        let old = Summary::of([8.0, 9.0, 10.0]).unwrap();
        let within = Summary::of([6.0, 7.0, 8.5]).unwrap();
        let below = Summary::of([6.0, 7.0, 7.9]).unwrap();
        assert!(!is_worse(Better::More, old, within));
        assert!(is_worse(Better::More, old, below));
        assert!(!is_worse(Better::Less, old, below));
        assert!(is_worse(Better::Less, below, old));
    }
}
