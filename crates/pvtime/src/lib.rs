//! Paravirtualized time for virtual machines: both ends of every interface.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod guest;
pub mod scale;
pub mod seqlock;
