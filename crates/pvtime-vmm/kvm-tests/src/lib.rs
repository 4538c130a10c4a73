//! The tests of `pvtime-vmm` that need KVM. They are a package of their own so that what its other tests
//! need, some sixty crates, is not built again for the hosts of the lab, which run these.
