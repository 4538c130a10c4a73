//! Writes to the pages of the time interfaces. What only the host writes stays as it is; a guest
//! that scribbles on its own stolen time has harmed itself until it asks anew.

use pvtime::seqlock::{MappedWords, ReadWords, Word, WriteWords};

use super::{NotPassed, Verdict, absent, ensure, failed, message, test};
use crate::bare::{interfaces, paused, registers, vectors, window};

/// What a structure is overwritten with, a word at a time.
const GARBAGE: [u64; 3] = [0xa5a5_a5a5_a5a5_a5a5, 0, u64::MAX];
const STRUCTURE_BYTES: usize = 64;

/// Writes every garbage over every word, and returns how many writes faulted.
fn scribble<W: Word>(words: &MappedWords<W>, garbage: impl Fn(u64) -> W) -> u32
where
    MappedWords<W>: WriteWords<W>,
{
    let mut faults = 0;
    for value in GARBAGE {
        for index in 0..STRUCTURE_BYTES / W::BYTES {
            let fault = vectors::catch(|| words.store(index, garbage(value)));
            faults += u32::from(fault.is_some());
        }
    }
    faults
}

fn mapped<W: Word>(address: u64) -> Result<MappedWords<W>, NotPassed> {
    window::map(address, STRUCTURE_BYTES).map_err(|error| failed(format_args!("{error}")))
}

/// Stores that no hypervisor can emulate: the guest gets an abort, and the VM goes on.
fn scribble_hard(address: u64) -> Result<(u32, u32), NotPassed> {
    window::scribble_hard(address).map_err(|error| failed(format_args!("{error}")))
}

test!(a_write_to_live_time_changes_nothing);
/// Law 5: the structure is the host's, and read-only.
fn a_write_to_live_time_changes_nothing() -> Verdict {
    let Some((live, address)) = interfaces::live().zip(interfaces::live_address()) else {
        return Err(absent(format_args!("no live physical time")));
    };
    let before = live.mapping();
    let words = mapped::<u64>(address.0)?;
    let copy = || core::array::from_fn::<u64, 8, _>(|index| words.load(index));
    let old = copy();
    let faults = scribble(&words, |value| value);
    let (hard_faults, hard) = scribble_hard(address.0)?;
    ensure!(
        copy() == old,
        "the structure was {old:x?} and is {:x?}",
        copy()
    );
    ensure!(live.mapping() == before, "the mapping changed");
    ensure!(
        hard_faults == hard,
        "{hard_faults} of {hard} writes that cannot be emulated faulted"
    );
    Ok(message(format_args!(
        "24 writes, {faults} of them faulted; {hard} that cannot be emulated, all of them faulted"
    )))
}

test!(a_write_to_paused_time_changes_nothing);
fn a_write_to_paused_time_changes_nothing() -> Verdict {
    let Some((address, reader)) = paused::reader() else {
        return Err(absent(format_args!("no paused time")));
    };
    let before = reader.read();
    let words = mapped::<u32>(*address)?;
    let halved = |value: u64| u32::try_from(value >> 32).unwrap_or(0);
    let faults = scribble(&words, halved);
    ensure!(
        reader.read() == before,
        "it was {before:?} and is {:?}",
        reader.read()
    );
    Ok(message(format_args!("48 writes, {faults} of them faulted")))
}

test!(a_write_to_stolen_time_harms_the_guest_alone);
/// KVM adds to what it finds in the structure: nonsense stays nonsense until the guest asks anew.
fn a_write_to_stolen_time_harms_the_guest_alone() -> Verdict {
    let cpu = registers::cpu();
    let Some((address, reader)) = interfaces::stolen(cpu) else {
        return Err(absent(format_args!("no stolen time")));
    };
    let before_ns = reader.stolen_ns();
    let words = mapped::<u64>(address.0)?;
    let faults = scribble(&words, |value| value);
    let was_taken = words.load(2) == u64::MAX;
    let (mut caller, pv_time) =
        interfaces::pv_time().map_err(|error| failed(format_args!("{error}")))?;
    let again = pv_time
        .stolen_time(&mut caller)
        .map_err(|error| failed(format_args!("{error}")))?;
    ensure!(
        again == *address,
        "it moved from {:#x} to {:#x}",
        address.0,
        again.0
    );
    let after_ns = reader.stolen_ns();
    ensure!(
        words.load(0) == 0 && after_ns < 1_000_000_000,
        "after asking anew: {:#x}, {after_ns} ns",
        words.load(0)
    );
    Ok(message(format_args!(
        "24 writes, {faults} of them faulted, kept by the memory: {was_taken}; {before_ns} ns before, \
         {after_ns} ns after asking anew"
    )))
}
