//! A vCPU's record.

use super::layout::{ASKED_DEADLINES, ASKED_STREAM, VcpuLayout, by_cause, open, seal};
use super::{Record, SavedError};
use crate::abi::stolen_time::StolenTime;
use crate::host::PausedNs;
use crate::host::ledger::Accounts;
use crate::host::timers::{Asked, AskedStream, Timer, TimerControl, VcpuTimers};
use crate::scale::{CompareValue, EventStream, PvDeadline};
use core::mem::size_of;

/// The time of one vCPU of a stopped VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedVcpu {
    /// Its timers, in native ticks of the host that it stopped on.
    pub timers: VcpuTimers,
    /// Its stolen time; `None` where its guest has not asked for it.
    pub stolen: Option<StolenTime>,
    /// Its ledger.
    pub accounts: Accounts,
}

impl SavedVcpu {
    /// Bytes of the record.
    pub const SIZE_BYTES: usize = size_of::<VcpuLayout>();

    /// The record's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; Self::SIZE_BYTES] {
        zerocopy::transmute!(seal(self.layout()))
    }

    /// The record in `bytes`.
    ///
    /// # Errors
    ///
    /// [`SavedError`] for everything but what [`emit`](Self::emit) gives.
    pub fn parse(bytes: &[u8]) -> Result<Self, SavedError> {
        let layout: VcpuLayout = open(bytes)?;
        Ok(Self {
            timers: VcpuTimers {
                virtual_timer: Timer {
                    control: TimerControl(layout.virtual_control.get()),
                    compare_value: CompareValue(layout.virtual_compare.get()),
                },
                physical_timer: Timer {
                    control: TimerControl(layout.physical_control.get()),
                    compare_value: CompareValue(layout.physical_compare.get()),
                },
                event_control: layout.event_control.get(),
                asked: asked(&layout)?,
            },
            stolen: stolen(&layout)?,
            accounts: Accounts {
                physical_ns: layout.ledger_physical_ns.get(),
                run_ns: layout.ledger_run_ns.get(),
                idle_ns: layout.ledger_idle_ns.get(),
                stolen_ns: layout.ledger_stolen_ns.get(),
                paused: PausedNs::new(by_cause(layout.ledger_paused_ns)),
            },
        })
    }

    fn layout(&self) -> VcpuLayout {
        let timers = &self.timers;
        let mut layout = VcpuLayout {
            virtual_control: timers.virtual_timer.control.0.into(),
            physical_control: timers.physical_timer.control.0.into(),
            virtual_compare: timers.virtual_timer.compare_value.0.into(),
            physical_compare: timers.physical_timer.compare_value.0.into(),
            event_control: timers.event_control.into(),
            stolen_asked_for: u32::from(self.stolen.is_some()).into(),
            stolen_ns: self.stolen.unwrap_or_default().stolen_ns.into(),
            ledger_physical_ns: self.accounts.physical_ns.into(),
            ledger_run_ns: self.accounts.run_ns.into(),
            ledger_idle_ns: self.accounts.idle_ns.into(),
            ledger_stolen_ns: self.accounts.stolen_ns.into(),
            ledger_paused_ns: self.accounts.paused.by_cause_ns().map(Into::into),
            ..VcpuLayout::default()
        };
        if let Some(asked) = timers.asked {
            layout.asked |= ASKED_DEADLINES;
            layout.virtual_deadline = asked.virtual_deadline.0.into();
            layout.physical_deadline = asked.physical_deadline.0.into();
            if let Some(stream) = asked.stream {
                layout.asked |= ASKED_STREAM;
                layout.stream_pv_bit = stream.pv_bit.into();
                layout.stream_programmed = stream.programmed.bit();
            }
        }
        layout
    }
}

fn stolen(layout: &VcpuLayout) -> Result<Option<StolenTime>, SavedError> {
    let stolen_ns = layout.stolen_ns.get();
    match layout.stolen_asked_for.get() {
        0 if stolen_ns == 0 => Ok(None),
        1 => Ok(Some(StolenTime { stolen_ns })),
        _ => Err(impossible("stolen time that was not asked for")),
    }
}

fn asked(layout: &VcpuLayout) -> Result<Option<Asked>, SavedError> {
    let (pv_bit, programmed) = (layout.stream_pv_bit.get(), layout.stream_programmed);
    let [virtual_deadline, physical_deadline] =
        [layout.virtual_deadline, layout.physical_deadline].map(|count| PvDeadline(count.get()));
    let unused_stream = (pv_bit, programmed) == (0, 0);
    let stream = match layout.asked & ASKED_STREAM {
        0 if unused_stream => None,
        0 => return Err(impossible("an event stream that is off")),
        _ => {
            let programmed = EventStream::from_bit(programmed);
            let programmed = programmed.ok_or(impossible("the event stream"))?;
            Some(AskedStream { pv_bit, programmed })
        }
    };
    match layout.asked & !ASKED_STREAM {
        ASKED_DEADLINES => Ok(Some(Asked {
            virtual_deadline,
            physical_deadline,
            stream,
        })),
        0 if stream.is_none() && virtual_deadline.0 == 0 && physical_deadline.0 == 0 => Ok(None),
        _ => Err(impossible("a deadline that was not asked for")),
    }
}

const fn impossible(field: &'static str) -> SavedError {
    SavedError::Field {
        record: Record::Vcpu,
        field,
    }
}
