//! The timers of all of a VM's vCPUs, which are translated together.

use pvtime::host::timers::{TranslatedTimers, Translation, VcpuTimers};

/// Timers as they were before a translation, until the VM goes on with it: some or all of its vCPUs'
/// registers hold what it made of them, so they say nothing any more.
#[derive(Debug, Default)]
pub struct Untranslated {
    before: Option<Vec<VcpuTimers>>,
    /// What all registers hold instead, and by which translation.
    done: Option<(Translation, Vec<TranslatedTimers>)>,
}

impl Untranslated {
    /// The timers: those that were kept, else what `read` finds in the registers.
    ///
    /// # Errors
    ///
    /// What `read` returns.
    pub fn or_read<E>(
        &self,
        read: impl FnOnce() -> Result<Vec<VcpuTimers>, E>,
    ) -> Result<Vec<VcpuTimers>, E> {
        match &self.before {
            Some(kept) => Ok(kept.clone()),
            None => read(),
        }
    }

    /// Translates all timers, once, however often it is tried or asked for.
    ///
    /// # Errors
    ///
    /// What `read` and `write` return.
    pub fn translate<E>(
        &mut self,
        translation: Translation,
        read: impl FnOnce() -> Result<Vec<VcpuTimers>, E>,
        write: impl FnOnce(Vec<VcpuTimers>) -> Result<(), E>,
    ) -> Result<Vec<TranslatedTimers>, E> {
        if let Some((done, translated)) = &self.done
            && *done == translation
        {
            return Ok(translated.clone());
        }
        let before = self.or_read(read)?;
        let translated: Vec<_> = before.iter().map(|it| translation.apply(it)).collect();
        self.before = Some(before);
        self.done = None;
        write(translated.iter().map(|it| it.timers).collect())?;
        self.done = Some((translation, translated.clone()));
        Ok(translated)
    }

    /// The VM goes on with what its registers hold.
    pub fn settle(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvtime::abi::live_physical_time::LivePhysicalTime;
    use pvtime::host::timers::{Timer, TimerControl};
    use pvtime::scale::{CompareValue, Frequency};

    fn translation() -> Translation {
        let hz = |hz| Frequency::from_hz(hz).unwrap();
        let mapping = |native| LivePhysicalTime::between(hz(native), hz(1_000_000_000)).unwrap();
        Translation {
            from: mapping(25_000_000),
            to: mapping(100_000_000),
            has_run: true,
            has_ecv: false,
        }
    }

    fn timers(compare_value: u64) -> VcpuTimers {
        let timer = Timer {
            control: TimerControl(TimerControl::ENABLE),
            compare_value: CompareValue(compare_value),
        };
        VcpuTimers::new(timer, timer, 0)
    }

    #[test]
    fn l4_timers_of_a_write_that_failed_are_translated_once() {
        let mut registers = vec![timers(1_000), timers(2_000)];
        let mut untranslated = Untranslated::default();
        let read = || Ok::<_, &str>(vec![timers(1_000), timers(2_000)]);
        let failed = untranslated.translate(translation(), read, |written| {
            registers[0] = written[0];
            Err("the second vCPU's write failed")
        });
        assert_eq!(failed, Err("the second vCPU's write failed"));
        assert_eq!(registers[0].virtual_timer.compare_value.0, 4_000);

        let kept = untranslated.or_read(|| Ok::<_, &str>(registers.clone()));
        assert_eq!(kept, Ok(vec![timers(1_000), timers(2_000)]), "to be saved");
        let in_registers = registers.clone();
        let read = || Ok::<_, &str>(in_registers);
        let translated = untranslated.translate(translation(), read, |written| {
            registers = written;
            Ok(())
        });
        let kept = untranslated.or_read(|| Ok::<_, &str>(registers.clone()));
        assert_eq!(
            kept,
            Ok(vec![timers(1_000), timers(2_000)]),
            "it did not go on"
        );
        let again = untranslated.translate(
            translation(),
            || Err("they are read again"),
            |_| Err("they are written again"),
        );
        assert_eq!(again, translated);
        let values = |timers: &VcpuTimers| {
            [timers.virtual_timer, timers.physical_timer].map(|it| it.compare_value.0)
        };
        assert_eq!(values(&registers[0]), [4_000; 2]);
        assert_eq!(values(&registers[1]), [8_000; 2]);
        let asked = translated.unwrap()[0].timers.asked.unwrap();
        assert_eq!(asked.virtual_deadline.0, 40_000);

        untranslated.settle();
        let read = untranslated.or_read(|| Ok::<_, &str>(registers.clone()));
        assert_eq!(read, Ok(registers), "nothing is kept");
    }
}
