//! Tables for people: columns, no frames, and numbers that line up.

use comfy_table::{CellAlignment, Table, presets};

/// A table with this head.
pub fn new(head: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(head.to_vec());
    table
}

/// A table whose columns are all numbers.
pub fn of_numbers(head: &[&str]) -> Table {
    let mut table = new(head);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Seconds with three decimals.
pub fn seconds(ns: impl Into<i128>) -> String {
    thousandths(ns.into(), 1_000_000)
}

/// Milliseconds with three decimals.
pub fn milliseconds(ns: impl Into<i128>) -> String {
    thousandths(ns.into(), 1_000)
}

/// What has this many ns to a thousandth, rounded to the nearest.
fn thousandths(ns: i128, thousandth_ns: u128) -> String {
    let rounded = ns.unsigned_abs().saturating_add(thousandth_ns / 2) / thousandth_ns;
    let sign = if ns < 0 && rounded > 0 { "-" } else { "" };
    format!("{sign}{}.{:03}", rounded / 1_000, rounded % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_rounded_and_keep_their_sign() {
        assert_eq!(seconds(0), "0.000");
        assert_eq!(seconds(1_499_500_000), "1.500");
        assert_eq!(seconds(1_499_499_999), "1.499");
        assert_eq!(seconds(-2_000_000), "-0.002");
        assert_eq!(seconds(-499_999), "0.000");
        assert_eq!(milliseconds(-7_000), "-0.007");
        assert_eq!(milliseconds(u64::MAX), "18446744073709.552");
        assert!(milliseconds(i128::MIN).starts_with("-170141183460469231731687303715884"));
    }
}
