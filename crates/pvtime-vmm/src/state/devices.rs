//! The state of the devices that the VMM emulates.

use serde::{Deserialize, Serialize};
use vm_superio::{RtcState, SerialState};

use crate::pl061::Pl061State;

/// The devices of a machine; by default as they are when it is turned on.
///
/// Bytes that a port's other end sent and the port has not taken yet are no state of the port. The
/// clock's state is its distance from the host's wall clock: it runs on while the machine does not,
/// as one with a battery does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceStates {
    /// The console.
    #[serde(with = "Port")]
    pub console: SerialState,
    /// The second port.
    #[serde(with = "Port")]
    pub serial: SerialState,
    /// The real-time clock.
    #[serde(with = "Clock")]
    pub rtc: RtcState,
    /// The keys that ask the guest to suspend itself; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Pl061State>,
}

/// The registers of a 16550 by name, and the bytes that the guest has not read.
#[derive(Serialize, Deserialize)]
#[serde(remote = "SerialState", deny_unknown_fields)]
struct Port {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

/// The registers of a PL031, and its distance from the host's wall clock in seconds.
#[derive(Serialize, Deserialize)]
#[serde(remote = "RtcState", deny_unknown_fields)]
struct Clock {
    lr: u32,
    offset: i64,
    mr: u32,
    imsc: u32,
    ris: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_the_same_after_a_file() {
        let states = DeviceStates {
            console: SerialState {
                baud_divisor_low: 1,
                baud_divisor_high: 2,
                interrupt_enable: 3,
                interrupt_identification: 4,
                line_control: 5,
                line_status: 6,
                modem_control: 7,
                modem_status: 8,
                scratch: 9,
                in_buffer: b"unread".to_vec(),
            },
            serial: SerialState::default(),
            rtc: RtcState {
                lr: 1,
                offset: -2,
                mr: 3,
                imsc: 4,
                ris: 5,
            },
            keys: Some(Pl061State {
                outputs: 1,
                inputs: 2,
                direction: 3,
                sense: 4,
                both_edges: 5,
                event: 6,
                mask: 7,
                edges: 8,
                alternate: 9,
            }),
        };
        let json = serde_json::to_string(&states).unwrap();
        assert_eq!(serde_json::from_str::<DeviceStates>(&json).unwrap(), states);
        let unknown = json.replacen("scratch", "scratched", 1);
        assert!(serde_json::from_str::<DeviceStates>(&unknown).is_err());
        let without = DeviceStates::default();
        let json = serde_json::to_string(&without).unwrap();
        assert!(!json.contains("keys"), "older versions read it: {json}");
        assert_eq!(
            serde_json::from_str::<DeviceStates>(&json).unwrap(),
            without
        );
    }
}
