//! Runs commands on a lab host for the lab: the protocol between the two.
//!
//! The lab sends one [`message::Request`] at a time, and the agent answers each with one
//! [`message::Answer`], in order. Both travel as [`frame`]s: a JSON header and, where there are file
//! contents, raw bytes. The channel is a virtio-serial port of an emulated host, or a socket of a
//! child process. Its end is the end of the agent and of all that it started.

pub mod frame;
pub mod message;
pub mod relay;
pub mod system_call;
pub mod tether;

/// Version of the messages. Lab and agent are built together; this catches a stale initramfs.
pub const PROTOCOL: u32 = 4;

/// The agent's program with this argument becomes the program in the arguments behind it, for which
/// KVM's VMs and vCPUs have no attributes: no SMCCC filter and no place for stolen time.
pub const WITHHOLD_ATTRIBUTES: &str = "withhold-attributes";

/// The same, with a KVM that has no offset for all counters of a VM, as before Linux 6.4.
pub const WITHHOLD_COUNTER_OFFSET: &str = "withhold-counter-offset";

/// The agent's program with this argument talks to the Unix socket at the path behind it: its standard
/// input goes there, and what comes from there to its standard output.
pub const TALK: &str = "talk";

/// Name of the virtio-serial port that carries the protocol.
pub const PORT_NAME: &str = "org.pvtime.lab";
