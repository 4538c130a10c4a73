#![expect(
    unsafe_code,
    reason = "the signal handler's flag is read as KVM reads it"
)]

use std::ptr;
use std::sync::atomic::AtomicU64;
use std::thread::{JoinHandle, sleep};

use rustix::thread::gettid;

use super::member::Passage;
use super::*;
use crate::clock;

const SIGNAL: c_int = libc::SIGUSR2;
const LIMIT: Duration = Duration::from_secs(10);

/// A vCPU whose guest counts, and leaves only when its flag is set.
#[derive(Default)]
struct FakeVcpu {
    /// Makes the thread slow before it arms its flag and before it enters the guest, where kicks
    /// are lost most easily.
    hesitation: Duration,
    immediate_exit: u8,
    entries: u64,
}

#[derive(Default)]
struct Guest {
    instructions: AtomicU64,
    /// Of the second vCPU; the third has twice as much, the first none.
    hesitation: Duration,
}

impl ImmediateExit for FakeVcpu {
    fn immediate_exit(&mut self) -> &mut u8 {
        sleep(self.hesitation);
        &mut self.immediate_exit
    }
}

impl Guest {
    fn run(&self, vcpu: &mut FakeVcpu) {
        sleep(vcpu.hesitation);
        vcpu.entries += 1;
        let flag = &raw const vcpu.immediate_exit;
        // SAFETY: `vcpu` is borrowed; only this thread's signal handler writes to it meanwhile.
        while unsafe { ptr::read_volatile(flag) } == 0 {
            self.instructions.fetch_add(1, Ordering::SeqCst);
            thread::yield_now();
        }
    }
}

fn run(gate: &Arc<Gate<FakeVcpu>>, index: usize, guest: &Arc<Guest>) -> JoinHandle<u64> {
    let (gate, guest) = (Arc::clone(gate), Arc::clone(guest));
    thread::spawn(move || {
        let member = Member::join(&gate, index, |_, _| (), || None).unwrap();
        let mut vcpu = FakeVcpu {
            hesitation: guest.hesitation * u32::try_from(index).unwrap(),
            ..FakeVcpu::default()
        };
        while member.enter(&mut vcpu, |vcpu| guest.run(vcpu)).is_some() {}
        vcpu.entries
    })
}

fn open_gate() -> Arc<Gate<FakeVcpu>> {
    let gate = Gate::new(SIGNAL, Lease::forever()).unwrap();
    assert!(!gate.is_open(), "nothing runs before somebody says so");
    gate.open();
    Arc::new(gate)
}

fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn no_guest_instruction_runs_while_the_gate_is_closed() {
    let gate = open_gate();
    let guest = Arc::new(Guest {
        hesitation: Duration::from_millis(1),
        ..Guest::default()
    });
    let threads: Vec<_> = (0..3).map(|index| run(&gate, index, &guest)).collect();
    let instructions = || guest.instructions.load(Ordering::SeqCst);
    wait_until(|| gate.lock().members.len() == 3 && instructions() > 0);
    for turn in 0..200 {
        let before = gate.close(LIMIT, instructions).unwrap();
        if turn % 20 == 0 {
            sleep(Duration::from_millis(2));
        }
        assert_eq!(instructions(), before, "turn {turn}");
        gate.open();
        wait_until(|| instructions() > before);
    }
    gate.stop();
    // In each turn one entered at least; a slow one may have been too late every time.
    let entries: u64 = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert!(entries >= 200, "{entries} entries");
}

/// What members did, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    Enter,
    Leave,
    GetReady,
}

#[test]
fn members_leave_the_guest_and_get_ready_in_their_turns() {
    let gate = open_gate();
    let guest = Arc::new(Guest::default());
    let log = Arc::new(Mutex::new(Vec::new()));
    let threads: Vec<_> = (0..3)
        .map(|index| {
            let (gate, guest, log) = (Arc::clone(&gate), Arc::clone(&guest), Arc::clone(&log));
            let does = move |what| log.lock().unwrap().push((what, index));
            let passes = does.clone();
            thread::spawn(move || {
                let watch = move |passing, _: &FakeVcpu| {
                    if passing == Passing::Leaves {
                        passes(Did::GetReady);
                    }
                };
                let member = Member::join(&gate, index, watch, || None).unwrap();
                let mut vcpu = FakeVcpu::default();
                let run = |vcpu: &mut FakeVcpu| {
                    does(Did::Enter);
                    guest.run(vcpu);
                    does(Did::Leave);
                };
                while member.enter(&mut vcpu, run).is_some() {}
            })
        })
        .collect();
    let who = |did| {
        let log = log.lock().unwrap();
        let those = log.iter().filter(|it| it.0 == did).map(|it| it.1);
        those.collect::<Vec<usize>>()
    };
    for last in [1, 0, 2] {
        wait_until(|| who(Did::Enter).len() == 3);
        log.lock().unwrap().clear();
        let mut state = gate.lock();
        for member in &mut state.members {
            member.turn = if member.index == last {
                Turn::Last
            } else {
                Turn::First
            };
        }
        gate.set(&mut state, Position::Closed);
        let (state, left) = gate.await_members(state, LIMIT);
        drop(state);
        left.unwrap();
        gate.open();
        for did in [Did::Leave, Did::GetReady] {
            let who = who(did);
            assert_eq!((who.len(), who[2]), (3, last), "{did:?}: {who:?}");
        }
    }
    gate.stop();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn whoever_is_ready_passes_while_others_have_the_lock() {
    let gate = open_gate();
    let guest = Arc::new(Guest::default());
    let threads: Vec<_> = (0..3).map(|index| run(&gate, index, &guest)).collect();
    let are = |place| {
        let state = gate.lock();
        state.members.len() == 3 && state.members.iter().all(|it| it.place == place)
    };
    wait_until(|| are(Place::Away));
    gate.close(LIMIT, || ()).unwrap();
    gate.set(&mut gate.lock(), Position::Opening);
    wait_until(|| are(Place::Ready));
    let mut state = gate.lock();
    let instructions = || guest.instructions.load(Ordering::SeqCst);
    let (before, began) = (instructions(), Instant::now());
    gate.set(&mut state, Position::Open);
    while instructions() == before && began.elapsed() < LIMIT {
        thread::yield_now();
    }
    assert!(instructions() > before, "they wait for the lock");
    let places: Vec<_> = state.members.iter().map(|it| it.place).collect();
    assert_eq!(places, [Place::Away; 3], "they are to be kicked");
    drop(state);
    gate.close(LIMIT, || ()).unwrap();
    gate.stop();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn jobs_are_done_by_every_member_and_only_at_a_closed_gate() {
    let gate = open_gate();
    let guest = Arc::new(Guest::default());
    let threads: Vec<_> = (0..4).map(|index| run(&gate, index, &guest)).collect();
    wait_until(|| gate.lock().members.len() == 4);
    assert_eq!(gate.on_each(|index, _| index), None);
    gate.close(LIMIT, || ()).unwrap();
    for _ in 0..20 {
        let results = gate.on_each(|index, vcpu: &mut FakeVcpu| {
            vcpu.entries += 1000;
            (index, gettid(), vcpu.entries >= 1000)
        });
        let results = results.unwrap();
        assert_eq!(
            results.iter().map(|it| it.0).collect::<Vec<_>>(),
            [0, 1, 2, 3]
        );
        assert!(results.iter().all(|it| it.2 && it.1 != gettid()));
    }
    gate.stop();
    for thread in threads {
        assert!(thread.join().unwrap() >= 20_000);
    }
}

#[test]
fn a_thread_that_joins_late_waits_at_the_closed_gate() {
    let gate = open_gate();
    gate.close(LIMIT, || ()).unwrap();
    let guest = Arc::new(Guest::default());
    let thread = run(&gate, 0, &guest);
    wait_until(|| gate.lock().is_any(Place::Waiting));
    assert_eq!(guest.instructions.load(Ordering::SeqCst), 0);
    gate.open();
    wait_until(|| guest.instructions.load(Ordering::SeqCst) > 0);
    gate.stop();
    thread.join().unwrap();
}

/// A gate that is open, with a lease that ends this long from now.
fn leased_gate(term: Duration) -> Arc<Gate<FakeVcpu>> {
    let gate = Gate::new(SIGNAL, Lease::ended()).unwrap();
    gate.open();
    gate.lease().renew_until(boottime_after(term));
    Arc::new(gate)
}

fn boottime_after(term: Duration) -> u64 {
    clock::boottime_ns() + u64::try_from(term.as_nanos()).unwrap()
}

#[test]
fn s2_nobody_enters_without_a_lease_and_all_do_when_it_is_renewed() {
    let gate = leased_gate(Duration::from_millis(20));
    let guest = Arc::new(Guest::default());
    let threads: Vec<_> = (0..3).map(|index| run(&gate, index, &guest)).collect();
    let instructions = || guest.instructions.load(Ordering::SeqCst);
    wait_until(|| gate.lock().members.len() == 3);
    for _ in 0..20 {
        // Nobody closed it: the timers took them out, and the lease keeps them.
        wait_until(|| {
            gate.lock()
                .members
                .iter()
                .all(|it| it.place == Place::Waiting)
        });
        assert!(gate.lease().has_ended());
        assert_eq!(gate.lock().position, Position::Open);
        let before = instructions();
        sleep(Duration::from_millis(5));
        assert_eq!(instructions(), before);
        // They can be stopped there like anywhere else.
        gate.close(LIMIT, || ()).unwrap();
        assert_eq!(gate.on_each(|index, _| index), Some(vec![0, 1, 2]));
        gate.leave_to_lease();
        assert_eq!(instructions(), before);
        gate.renew_lease(clock::boottime_ns());
        wait_until(|| instructions() > before);
    }
    gate.stop();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_thread_that_knows_that_it_ran_renews_the_lease_by_itself() {
    let gate = leased_gate(Duration::from_millis(1));
    sleep(Duration::from_millis(2));
    let member = Member::join(
        &gate,
        0,
        |_, _| panic!("it waits"),
        || Some(clock::boottime_ns()),
    )
    .unwrap();
    let entered = member.enter(&mut FakeVcpu::default(), |_| gate.lease().has_ended());
    assert_eq!(entered, Some(false));
}

#[test]
fn s2_a_thread_that_was_stopped_after_it_vouched_does_not_enter() {
    let gate = leased_gate(Duration::ZERO);
    let vouched = Arc::new(AtomicU32::new(0));
    let (its_gate, counter) = (Arc::clone(&gate), Arc::clone(&vouched));
    let thread = thread::spawn(move || {
        let ran_ns = clock::boottime_ns();
        // Whoever knows that it ran then knows nothing of the time since.
        let vouch = move || (counter.fetch_add(1, Ordering::SeqCst) < 3).then_some(ran_ns);
        sleep(crate::sleep::TERM);
        let member = Member::join(&its_gate, 0, |_, _| (), vouch).unwrap();
        member.enter(&mut FakeVcpu::default(), |_| ())
    });
    wait_until(|| gate.lock().is_any(Place::Waiting));
    assert_eq!(vouched.load(Ordering::SeqCst), 4);
    gate.stop();
    assert_eq!(thread.join().unwrap(), None);
}

#[test]
fn s2_a_thread_that_is_held_up_between_its_look_and_the_guest_does_not_enter() {
    let gate = leased_gate(Duration::from_secs(60));
    let member = Member::join(&gate, 0, |_, _| (), || None).unwrap();
    let mut vcpu = FakeVcpu::default();
    for held_up in [false, true, true, false] {
        let term = Duration::from_millis(if held_up { 5 } else { 60_000 });
        gate.lease().renew_until(boottime_after(term));
        let entered = member.enter(&mut vcpu, |vcpu| {
            while held_up && !gate.lease().has_ended() {
                thread::yield_now();
            }
            // The signal comes with the end of the lease, or a moment later.
            sleep(Duration::from_millis(if held_up { 5 } else { 0 }));
            let flag = &raw const vcpu.immediate_exit;
            // SAFETY: `vcpu` is borrowed; only this thread's signal handler writes meanwhile.
            unsafe { ptr::read_volatile(flag) == 0 }
        });
        assert_eq!(entered, Some(!held_up));
    }
}

#[test]
fn a_thread_that_does_not_come_out_is_named_and_the_rest_runs_on() {
    let gate = open_gate();
    // This thread is a member that handles an exit for ever.
    let stuck = Member::join(&gate, 7, |_, _| (), || None).unwrap();
    let error = gate.close(Duration::from_millis(20), || ()).unwrap_err();
    assert!(
        matches!(error, CloseError::Stuck { index: 7, .. }),
        "{error}"
    );
    assert!(gate.is_open());
    drop(stuck);
    gate.close(LIMIT, || ()).unwrap();
}

#[test]
fn a_stopped_gate_stays_stopped() {
    let gate = open_gate();
    gate.stop();
    gate.open();
    gate.close(LIMIT, || ()).unwrap();
    let member = Member::join(&gate, 0, |_, _| (), || None).unwrap();
    assert_eq!(member.wait(&mut FakeVcpu::default()), Passage::Stopped);
}

/// What a member was told, in order.
type Told = Arc<Mutex<Vec<Passing>>>;

/// A member that takes its time over what it is told.
fn run_told(gate: &Arc<Gate<FakeVcpu>>, guest: &Arc<Guest>) -> (JoinHandle<()>, Told) {
    let told = Told::default();
    let (gate, guest, telling) = (Arc::clone(gate), Arc::clone(guest), Arc::clone(&told));
    let thread = thread::spawn(move || {
        let tell = move |passing, _: &FakeVcpu| {
            sleep(Duration::from_millis(20));
            telling.lock().unwrap().push(passing);
        };
        let member = Member::join(&gate, 0, tell, || None).unwrap();
        let mut vcpu = FakeVcpu::default();
        while member.enter(&mut vcpu, |vcpu| guest.run(vcpu)).is_some() {}
    });
    (thread, told)
}

#[test]
fn what_a_member_has_to_do_is_done_before_the_last_and_after_the_first() {
    let gate = Arc::new(Gate::new(SIGNAL, Lease::forever()).unwrap());
    let guest = Arc::new(Guest::default());
    let instructions = || guest.instructions.load(Ordering::SeqCst);
    let (thread, told) = run_told(&gate, &guest);
    let told = || told.lock().unwrap().clone();
    wait_until(|| told() == [Passing::Arrives]);
    let at_last = gate.open_after(|| Ok::<_, ()>((told(), instructions())));
    assert_eq!(
        at_last.unwrap(),
        (vec![Passing::Arrives, Passing::Leaves], 0)
    );
    wait_until(|| instructions() > 0);
    let at_stop = gate
        .close(LIMIT, || (told().len(), instructions()))
        .unwrap();
    assert_eq!(at_stop, (2, instructions()), "accounts come after the stop");
    assert_eq!(told().len(), 3, "closing waits for them");
    gate.stop();
    thread.join().unwrap();
    assert_eq!(told().len(), 3, "nobody leaves a stopped gate");
}

#[test]
fn an_opening_that_fails_lets_nobody_pass() {
    let gate = Arc::new(Gate::new(SIGNAL, Lease::forever()).unwrap());
    let guest = Arc::new(Guest::default());
    let (thread, told) = run_told(&gate, &guest);
    wait_until(|| told.lock().unwrap().len() == 1);
    let failed = gate.open_after(|| Err::<(), _>("the offset"));
    assert_eq!(failed, Err("the offset"));
    assert_eq!(
        *told.lock().unwrap(),
        [Passing::Arrives, Passing::Leaves, Passing::Arrives]
    );
    assert_eq!(guest.instructions.load(Ordering::SeqCst), 0);
    assert!(!gate.is_open());
    assert!(gate.on_each(|_, _| ()).is_some(), "it is closed as before");
    gate.open_after(|| Ok::<_, ()>(())).unwrap();
    wait_until(|| guest.instructions.load(Ordering::SeqCst) > 0);
    gate.stop();
    thread.join().unwrap();
}

#[test]
fn who_was_about_to_pass_has_arrived_again_when_the_gate_is_closed() {
    let gate = Arc::new(Gate::new(SIGNAL, Lease::forever()).unwrap());
    let guest = Arc::new(Guest::default());
    let (thread, told) = run_told(&gate, &guest);
    wait_until(|| told.lock().unwrap().len() == 1);
    // Wherever it is on its way into the guest.
    for turn in 0..25 {
        gate.open();
        gate.close(LIMIT, || ()).unwrap();
        let last = told.lock().unwrap().last().copied();
        assert_eq!(last, Some(Passing::Arrives), "turn {turn}");
    }
    gate.stop();
    thread.join().unwrap();
}
