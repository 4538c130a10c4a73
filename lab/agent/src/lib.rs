//! Runs commands on a lab host for the lab: its protocol.
