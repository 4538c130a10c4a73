use serde::Serialize;

/// A range of guest physical addresses for `/reserved-memory` in the device tree: it is no RAM,
/// and it needs `no-map` so that the guest maps it only where a driver asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReservedMemory {
    /// Name for the node, without the unit address.
    pub name: &'static str,
    /// First guest physical address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}
