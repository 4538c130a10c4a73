//! Paravirtualized time for virtual machines: both ends of every interface.
#![no_std]
#![forbid(unsafe_code)]
