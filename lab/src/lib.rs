//! Disrupts a virtual machine's time on real KVM and measures what its guest saw.

pub mod adjustments;
pub mod assets;
pub mod bare;
pub mod channel;
pub mod clocks;
pub mod control;
pub mod dialogue;
pub mod figures;
pub mod guest;
pub mod host;
pub mod initramfs;
pub mod interrupt;
pub mod lost;
pub mod machine;
pub mod peer;
pub mod plain;
pub mod progress;
pub mod report;
pub mod requests;
pub mod scenario;
pub mod scenarios;
pub mod sightings;
pub mod status;
pub mod vmm;
pub mod wire;
