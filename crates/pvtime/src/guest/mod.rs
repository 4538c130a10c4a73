//! What a guest does: finds the interfaces, reads them, keeps time with them.

mod discovery;
mod stolen_time;

pub use discovery::{Conduit, DiscoveryError, PvTime, smccc_version};
pub use stolen_time::StolenTimeReader;
