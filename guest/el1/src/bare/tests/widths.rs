//! Writes of every width at every place in and around the blocks of the time interfaces.

use pvtime::seqlock::{MappedWords, ReadWords, Word};

use super::{NotPassed, Verdict, absent, ensure, failed, message, test};
use crate::bare::window::Width;
use crate::bare::{interfaces, paused, registers, window};

const STRUCTURE_BYTES: u64 = 64;
const PAGE_BYTES: u64 = 4096;
/// What each interface has for itself, as the host lays them out.
const BLOCK_BYTES: u64 = 64 << 10;
const GARBAGE: [u64; 3] = [u64::MAX, 0, 0xa5a5_a5a5_a5a5_a5a5];

/// Writes that were made, and those of them that faulted.
#[derive(Default)]
struct Writes {
    made: u32,
    faulted: u32,
}

impl Writes {
    /// Writes everything of every width at every offset from `start` on, within a page and up to
    /// `end`.
    fn scribble(&mut self, start: u64, end: u64) -> Result<(), NotPassed> {
        for width in Width::ALL {
            let ends = end.min((start / PAGE_BYTES + 1) * PAGE_BYTES);
            for address in start..=ends.saturating_sub(width.bytes()) {
                for value in GARBAGE {
                    self.made += 1;
                    self.faulted += u32::from(write(address, width, value)?);
                }
            }
        }
        Ok(())
    }
}

fn write(address: u64, width: Width, value: u64) -> Result<bool, NotPassed> {
    window::scribble(address, width, value).map_err(|error| failed(format_args!("{error}")))
}

fn mapped<W: Word>(address: u64) -> Result<MappedWords<W>, NotPassed> {
    window::map(address, 64).map_err(|error| failed(format_args!("{error}")))
}

test!(no_width_of_writes_changes_what_only_the_host_writes);
/// Law 5, for both structures that the guest can only read: over each and beyond it, at the last
/// bytes of each block, and at those before the first and behind the last.
fn no_width_of_writes_changes_what_only_the_host_writes() -> Verdict {
    let live = interfaces::live().zip(interfaces::live_address());
    let (Some((live, live_at)), Some((paused_at, paused))) = (live, paused::reader()) else {
        return Err(absent(format_args!(
            "no live physical time, or no paused time"
        )));
    };
    let (live_words, paused_words) = (mapped::<u64>(live_at.0)?, mapped::<u32>(*paused_at)?);
    let copy = || {
        let live = core::array::from_fn::<u64, 8, _>(|index| live_words.load(index));
        let paused = core::array::from_fn::<u32, 16, _>(|index| paused_words.load(index));
        (live, paused)
    };
    let (old, mapping, told) = (copy(), live.mapping(), paused.read());
    let mut writes = Writes::default();
    for block in [live_at.0, *paused_at] {
        // What follows the structure is its block's.
        writes.scribble(block, block + STRUCTURE_BYTES + Width::LONGEST_BYTES)?;
        for edge in [
            block - STRUCTURE_BYTES,
            block + BLOCK_BYTES - STRUCTURE_BYTES,
        ] {
            writes.scribble(edge, edge + STRUCTURE_BYTES)?;
        }
        let behind = block + BLOCK_BYTES;
        if behind != *paused_at && behind != live_at.0 {
            writes.scribble(behind, behind + STRUCTURE_BYTES)?;
        }
    }
    ensure!(copy() == old, "it was {old:x?} and is {:x?}", copy());
    ensure!(live.mapping() == mapping, "the mapping changed");
    ensure!(
        paused.read() == told,
        "it was {told:?} and is {:?}",
        paused.read()
    );
    Ok(message(format_args!(
        "{} writes, {} of them faulted",
        writes.made, writes.faulted
    )))
}

test!(any_width_of_writes_to_stolen_time_is_undone_by_asking);
fn any_width_of_writes_to_stolen_time_is_undone_by_asking() -> Verdict {
    let Some((address, reader)) = interfaces::stolen(registers::cpu()) else {
        return Err(absent(format_args!("no stolen time")));
    };
    let words = mapped::<u64>(address.0)?;
    let mut writes = Writes::default();
    // Not over that of the next CPU, which is its own to harm.
    writes.scribble(address.0, address.0 + STRUCTURE_BYTES)?;
    let (mut caller, pv_time) =
        interfaces::pv_time().map_err(|error| failed(format_args!("{error}")))?;
    let again = pv_time
        .stolen_time(&mut caller)
        .map_err(|error| failed(format_args!("{error}")))?;
    ensure!(again == *address, "it moved to {:#x}", again.0);
    let stolen_ns = reader.stolen_ns();
    ensure!(
        words.load(0) == 0 && stolen_ns < 1_000_000_000,
        "after asking anew: {:#x}, {stolen_ns} ns",
        words.load(0)
    );
    Ok(message(format_args!(
        "{} writes, {} of them faulted; {stolen_ns} ns after asking anew",
        writes.made, writes.faulted
    )))
}
