//! Tables for people: columns, no frames.

use comfy_table::{Table, presets};

/// A table with this head.
pub fn new(head: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(head.to_vec());
    table
}
