//! Who may run a VM.
//!
//! ```text
//!          hold          give_away             gone
//!   ours ──────▶ leaving ──────────▶ in doubt ──────▶ gone
//!    ▲ ▲            │                 │   ▲
//!    │ └────────────┘                 │   └─ a VM that arrived and was not committed
//!    │      stay                      │
//!    └────────────────────────────────┘
//!           take_back, take_over
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What this process knows of who owns its VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// This process does.
    #[default]
    Ours,
    /// This process does, which stopped it and is about to give it away.
    Leaving,
    /// This process or the one at the other end of a migration.
    InDoubt,
    /// Another host's, whose name this is.
    Gone {
        /// Where the VM is now.
        to: String,
    },
}

/// The owner of one VM. A VM that is not ours is not let into its guest.
#[derive(Debug, Default)]
pub struct Ownership(Mutex<Owner>);

/// The VM is ours, and is not given away while this is held.
#[derive(Debug)]
#[must_use]
pub struct Ours<'a> {
    _owner: MutexGuard<'a, Owner>,
}

/// The VM may not go on here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// It is being handed over.
    #[error("the VM is on its way to another host; ask again when that is over")]
    Leaving,
    /// It may run elsewhere.
    #[error(
        "the VM is in doubt: its migration was cut off while it changed hands, and the other host \
         may run it; look there, then let it go on here (`pvtime ctl SOCKET resume --take-over`) \
         or end it here (`pvtime ctl SOCKET stop`)"
    )]
    InDoubt,
    /// It does run elsewhere.
    #[error("the VM is at {to} now; ask there")]
    Gone {
        /// Where.
        to: String,
    },
}

impl Ownership {
    /// What is known.
    pub fn owner(&self) -> Owner {
        self.lock().clone()
    }

    /// From now on the VM stays as it is, so that it can be given away.
    pub fn hold(&self) {
        let mut owner = self.lock();
        if *owner == Owner::Ours {
            *owner = Owner::Leaving;
        }
    }

    /// A VM that was held is not given away after all.
    pub fn stay(&self) {
        let mut owner = self.lock();
        if *owner == Owner::Leaving {
            *owner = Owner::Ours;
        }
    }

    /// The VM is given to somebody who may have got it and may not.
    pub fn give_away(&self) {
        *self.lock() = Owner::InDoubt;
    }

    /// Whoever it was given to says that it does not run it, and never will.
    pub fn take_back(&self) {
        *self.lock() = Owner::Ours;
    }

    /// Whoever it was given to says that it runs it.
    pub fn gone(&self, to: String) {
        *self.lock() = Owner::Gone { to };
    }

    /// An operator made sure that nobody else runs a VM in doubt. Says whether it was in doubt.
    ///
    /// # Errors
    ///
    /// [`NotOurs::Gone`], and [`NotOurs::Leaving`].
    pub fn take_over(&self) -> Result<bool, NotOurs> {
        let mut owner = self.lock();
        match &*owner {
            Owner::Ours => Ok(false),
            Owner::Leaving => Err(NotOurs::Leaving),
            Owner::InDoubt => {
                *owner = Owner::Ours;
                Ok(true)
            }
            Owner::Gone { to } => Err(NotOurs::Gone { to: to.clone() }),
        }
    }

    /// The right to let the VM go on; none for a VM that is not certainly ours.
    ///
    /// # Errors
    ///
    /// [`NotOurs`].
    pub fn ours(&self) -> Result<Ours<'_>, NotOurs> {
        let owner = self.lock();
        match &*owner {
            Owner::Ours => Ok(Ours { _owner: owner }),
            Owner::Leaving => Err(NotOurs::Leaving),
            Owner::InDoubt => Err(NotOurs::InDoubt),
            Owner::Gone { to } => Err(NotOurs::Gone { to: to.clone() }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Owner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(ownership: &Ownership) -> Option<NotOurs> {
        ownership.ours().err()
    }

    #[test]
    fn a_vm_in_doubt_goes_on_only_when_an_operator_says_so() {
        let ownership = Ownership::default();
        assert_eq!(refusal(&ownership), None);
        assert_eq!(ownership.take_over(), Ok(false));
        ownership.give_away();
        ownership.stay();
        assert_eq!(refusal(&ownership), Some(NotOurs::InDoubt));
        assert_eq!(ownership.take_over(), Ok(true));
        assert_eq!(refusal(&ownership), None);
    }

    #[test]
    fn a_vm_that_is_gone_stays_gone() {
        let ownership = Ownership::default();
        ownership.give_away();
        ownership.gone("tcp:there:1".into());
        let error = ownership.take_over().unwrap_err();
        assert_eq!(error.to_string(), "the VM is at tcp:there:1 now; ask there");
        ownership.hold();
        ownership.stay();
        assert_eq!(refusal(&ownership), Some(error));
    }

    #[test]
    fn a_vm_that_was_not_taken_is_ours_again() {
        let ownership = Ownership::default();
        ownership.give_away();
        ownership.take_back();
        assert_eq!(ownership.owner(), Owner::Ours);
    }

    #[test]
    fn a_vm_that_is_held_goes_on_only_when_it_stays() {
        let ownership = Ownership::default();
        ownership.hold();
        assert_eq!(refusal(&ownership), Some(NotOurs::Leaving));
        assert_eq!(ownership.take_over(), Err(NotOurs::Leaving));
        ownership.stay();
        assert_eq!(refusal(&ownership), None);
    }

    #[test]
    fn a_vm_is_not_given_away_while_it_is_let_go_on() {
        let ownership = Ownership::default();
        let ours = ownership.ours().unwrap();
        assert!(ownership.0.try_lock().is_err());
        drop(ours);
        assert!(ownership.0.try_lock().is_ok());
    }
}
