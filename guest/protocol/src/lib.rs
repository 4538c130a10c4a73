//! The messages between a test guest and whoever runs it.
#![no_std]
