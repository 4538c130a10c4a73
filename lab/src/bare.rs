//! What the bare-metal guest is asked, whoever runs it.

use crate::guest::Guest;
use crate::host::Host;
use anyhow::{Result, bail};
use guest_protocol::report::{
    Clocks, Interfaces, Memory, Outcome, Spin, TestResult, Timer, TimerState,
};
use guest_protocol::request::{ArmTimer, Fill};
use guest_protocol::{Action, Body, Workload};

/// A bare-metal guest that answers.
pub trait Bare {
    /// Asks for something and returns every report that answers, the `done` at their end left out.
    ///
    /// # Errors
    /// When the guest refuses or does not answer.
    fn ask_all(&mut self, action: Action) -> Result<Vec<Body>>;

    /// The one report that answers.
    ///
    /// # Errors
    /// As [`Self::ask_all`], and when there is none or more than one.
    fn ask_one(&mut self, action: Action) -> Result<Body> {
        let mut bodies = self.ask_all(action)?;
        match (bodies.pop(), bodies.is_empty()) {
            (Some(body), true) => Ok(body),
            (found, _) => bail!("the guest sent {found:?} and {bodies:?} for {action:?}"),
        }
    }

    /// Which time interfaces there are.
    ///
    /// # Errors
    /// As [`Self::ask_one`].
    fn interfaces(&mut self) -> Result<Interfaces> {
        match self.ask_one(Action::Interfaces)? {
            Body::Interfaces(found) => Ok(found),
            other => bail!("the guest sent {other:?} for its interfaces"),
        }
    }

    /// Every counter now.
    ///
    /// # Errors
    /// As [`Self::ask_one`].
    fn clocks(&mut self) -> Result<Clocks> {
        match self.ask_one(Action::Clocks)? {
            Body::Clocks(clocks) => Ok(clocks),
            other => bail!("the guest sent {other:?} for its clocks"),
        }
    }

    /// What every spinning CPU saw.
    ///
    /// # Errors
    /// As [`Self::ask_all`].
    fn spun(&mut self) -> Result<Vec<Spin>> {
        let bodies = self.ask_all(Action::Spin)?.into_iter();
        let spins = bodies.map(|body| match body {
            Body::Spin(spin) => Ok(spin),
            other => bail!("the guest sent {other:?} for spins"),
        });
        spins.collect()
    }

    /// Gives a CPU other work.
    ///
    /// # Errors
    /// As [`Self::ask_all`].
    fn give_work(&mut self, cpu: u32, workload: Workload) -> Result<()> {
        self.ask_all(Action::SetWorkload { cpu, workload })
            .map(drop)
    }

    /// Arms a timer.
    ///
    /// # Errors
    /// As [`Self::ask_all`].
    fn arm(&mut self, order: ArmTimer) -> Result<()> {
        self.ask_all(Action::ArmTimer(order)).map(drop)
    }

    /// Every timer that was armed.
    ///
    /// # Errors
    /// As [`Self::ask_all`].
    fn timers(&mut self) -> Result<Vec<TimerState>> {
        let bodies = self.ask_all(Action::Timers)?.into_iter();
        let timers = bodies.map(|body| match body {
            Body::Timer(state) => Ok(state),
            other => bail!("the guest sent {other:?} for timers"),
        });
        timers.collect()
    }

    /// Fills memory with a pattern.
    ///
    /// # Errors
    /// As [`Self::ask_all`].
    fn fill(&mut self, fill: Fill) -> Result<()> {
        self.ask_all(Action::Fill(fill)).map(drop)
    }

    /// Compares the memory that was filled.
    ///
    /// # Errors
    /// As [`Self::ask_one`].
    fn verify(&mut self) -> Result<Memory> {
        match self.ask_one(Action::Verify)? {
            Body::Memory(memory) => Ok(memory),
            other => bail!("the guest sent {other:?} for its memory"),
        }
    }

    /// Has the guest run its own tests.
    ///
    /// # Errors
    /// As [`Self::ask_all`].
    fn run_tests(&mut self) -> Result<Tests> {
        let bodies = self.ask_all(Action::RunTests)?.into_iter();
        let tests = bodies.map(|body| match body {
            Body::Test(test) => Ok(test),
            other => bail!("the guest sent {other:?} for tests"),
        });
        Ok(Tests(tests.collect::<Result<_>>()?))
    }
}

/// A bare-metal guest under `pvtime run`.
pub struct OnHost<'a> {
    /// The guest.
    pub guest: &'a mut Guest,
    /// Its host.
    pub host: &'a mut Host,
}

impl Bare for OnHost<'_> {
    fn ask_all(&mut self, action: Action) -> Result<Vec<Body>> {
        let id = self.guest.send(self.host, action)?;
        let mut bodies = Vec::new();
        loop {
            match self.guest.await_answer(self.host, id)? {
                Body::Done => return Ok(bodies),
                body => bodies.push(body),
            }
            if is_answered_by_one(action) {
                return Ok(bodies);
            }
        }
    }
}

/// Whether a request is answered by one report without a `done` behind it.
#[must_use]
pub fn is_answered_by_one(action: Action) -> bool {
    matches!(
        action,
        Action::Hello
            | Action::Interfaces
            | Action::Clocks
            | Action::Verify
            | Action::PowerOff
            | Action::Reset
            | Action::Kexec
    )
}

/// What the guest's own tests found.
#[derive(Debug, Clone, Default)]
pub struct Tests(pub Vec<TestResult>);

impl Tests {
    /// How many came to this.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> usize {
        self.of(outcome).count()
    }

    /// Those that came to this, with what they said.
    #[must_use]
    pub fn list(&self, outcome: Outcome) -> String {
        let tests = self.of(outcome);
        let lines = tests.map(|test| format!("{}: {}", test.name, test.message));
        lines.collect::<Vec<_>>().join("; ")
    }

    fn of(&self, outcome: Outcome) -> impl Iterator<Item = &TestResult> {
        self.0.iter().filter(move |test| test.outcome == outcome)
    }
}

/// Both timers of a CPU.
pub const TIMERS: [Timer; 2] = [Timer::Virtual, Timer::Physical];
