//! The time of a Linux KVM virtual machine, behind one object.
