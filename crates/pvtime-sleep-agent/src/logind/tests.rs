//! Against a logind of our own, over a socket pair in place of a bus.

use std::io::PipeReader;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use zbus::blocking::connection;
use zbus::zvariant;

use super::*;
use crate::connect;

const PATH: &str = "/org/freedesktop/login1";
const INTERFACE: &str = "org.freedesktop.login1.Manager";
const LONG: Duration = Duration::from_secs(60);

/// Little to wait for what does not come.
const SHORT: Duration = Duration::from_millis(500);

/// Looks that follow one another at once.
const OFTEN: Duration = Duration::from_millis(10);

/// What a logind was asked, and what its agent did.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Inhibited([String; 4]),
    Prepared(Duration),
    Finished,
}

/// What a logind does when it is asked for a lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Gives,
    Refuses,
    SaysNothing,
}

/// A logind that has made these locks.
struct FakeLogind {
    seen: Sender<Seen>,
    locks: Sender<PipeReader>,
    is_preparing: Arc<AtomicBool>,
    /// How often it was looked whether a sleep is under way.
    asked: Arc<AtomicU32>,
    manner: Manner,
    delay_max_us: u64,
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl FakeLogind {
    async fn inhibit(
        &self,
        what: String,
        who: String,
        why: String,
        mode: String,
    ) -> zbus::fdo::Result<zvariant::OwnedFd> {
        match self.manner {
            Manner::Gives if self.is_preparing.load(Ordering::SeqCst) => {
                // As logind does it, which has a name of its own for this.
                return Err(zbus::fdo::Error::Failed("already running".into()));
            }
            Manner::Gives => {}
            Manner::Refuses => return Err(zbus::fdo::Error::AccessDenied("no".into())),
            Manner::SaysNothing => std::future::pending().await,
        }
        let (read, write) = std::io::pipe().unwrap();
        self.seen
            .send(Seen::Inhibited([what, who, why, mode]))
            .unwrap();
        self.locks.send(read).unwrap();
        Ok(OwnedFd::from(write).into())
    }

    #[zbus(property)]
    fn preparing_for_sleep(&self) -> bool {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.is_preparing.load(Ordering::SeqCst)
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> u64 {
        self.delay_max_us
    }
}

struct FakeSleepers {
    seen: Sender<Seen>,
    /// They take longer than the host waits.
    are_slow: bool,
}

impl Sleepers for FakeSleepers {
    fn prepare(&self, limit: Duration, is_over: &dyn Fn() -> bool) {
        self.seen.send(Seen::Prepared(limit)).unwrap();
        while self.are_slow && !is_over() {
            sleep(OFTEN);
        }
    }

    fn finish(&self) {
        self.seen.send(Seen::Finished).unwrap();
    }
}

/// A logind, and an agent that follows it.
struct Bench {
    logind: Connection,
    seen: Receiver<Seen>,
    locks: Receiver<PipeReader>,
    is_preparing: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    agent: Receiver<Error>,
}

/// A logind at this path, which may be in the middle of a sleep, and the patience of its agent.
#[derive(Clone, Copy)]
struct Setting {
    path: &'static str,
    manner: Manner,
    is_preparing: bool,
    answer_limit: Duration,
    look_every: Duration,
    vms_are_slow: bool,
}

/// One that works, on a machine that may be busy, and an agent that follows what it announces alone.
const WORKING: Setting = Setting {
    path: PATH,
    manner: Manner::Gives,
    is_preparing: false,
    answer_limit: LONG,
    look_every: LONG,
    vms_are_slow: false,
};

impl Bench {
    fn with(setting: Setting) -> Self {
        let (ours, its) = UnixStream::pair().unwrap();
        let (sender, seen) = channel();
        let (give, locks) = channel();
        let sleepers = FakeSleepers {
            seen: sender.clone(),
            are_slow: setting.vms_are_slow,
        };
        let (ended, agent) = channel();
        thread::spawn(move || {
            let stream = connection::Builder::async_io_unix_stream(its).p2p();
            let connection = connect(stream, setting.answer_limit).unwrap();
            let Err(error) = follow(&connection, &sleepers, setting.look_every, |_| ());
            ended.send(error).unwrap();
        });
        let is_preparing = Arc::new(AtomicBool::new(setting.is_preparing));
        let asked = Arc::new(AtomicU32::new(0));
        let fake = FakeLogind {
            seen: sender,
            locks: give,
            is_preparing: is_preparing.clone(),
            asked: asked.clone(),
            manner: setting.manner,
            delay_max_us: 5_000_000,
        };
        let logind = connection::Builder::async_io_unix_stream(ours)
            .server(zbus::Guid::generate())
            .unwrap()
            .p2p()
            .serve_at(setting.path, fake)
            .unwrap()
            .build()
            .unwrap();
        Self {
            logind,
            seen,
            locks,
            is_preparing,
            asked,
            agent,
        }
    }

    fn announce(&self, start: bool) {
        self.is_preparing.store(start, Ordering::SeqCst);
        self.logind
            .emit_signal(None::<&str>, PATH, INTERFACE, "PrepareForSleep", &start)
            .unwrap();
    }

    fn sees(&self) -> Seen {
        self.seen.recv_timeout(LONG).unwrap()
    }

    fn lock(&self) -> PipeReader {
        self.locks.recv_timeout(LONG).unwrap()
    }

    /// Why the agent gave up, and whom it told.
    fn end(self) -> (Error, Vec<Seen>) {
        let error = self.agent.recv_timeout(LONG).unwrap();
        (error, self.seen.try_iter().collect())
    }
}

fn inhibited() -> Seen {
    let words = ["sleep", "pvtime", "VMs are told of the sleep", "delay"];
    Seen::Inhibited(words.map(str::to_owned))
}

/// Whether the other end lets go within this time.
fn is_released(lock: &PipeReader, within: Duration) -> bool {
    let start = Instant::now();
    loop {
        let mut fds = [PollFd::new(lock, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec::default())).unwrap();
        if fds[0].revents().contains(PollFlags::HUP) {
            return true;
        }
        if start.elapsed() > within {
            return false;
        }
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn s18_a_sleep_is_delayed_until_the_vms_are_ready_and_the_lock_is_taken_again() {
    let bench = Bench::with(WORKING);
    assert_eq!(bench.sees(), inhibited());
    assert_eq!(bench.sees(), Seen::Finished, "what may have been missed");
    let mut lock = bench.lock();
    for _ in 0..2 {
        assert!(!is_released(&lock, Duration::from_millis(50)));
        bench.announce(true);
        let limit = Duration::from_millis(4_750);
        assert_eq!(bench.sees(), Seen::Prepared(limit));
        assert!(is_released(&lock, LONG));
        bench.announce(false);
        assert_eq!(bench.sees(), inhibited());
        assert_eq!(bench.sees(), Seen::Finished);
        lock = bench.lock();
    }
    bench.logind.clone().close().unwrap();
    let (error, seen) = bench.end();
    assert!(matches!(error, Error::Lost | Error::Bus(_)), "{error}");
    assert_eq!(seen, []);
    assert!(is_released(&lock, LONG), "a new connection takes a new one");
}

#[test]
fn s18_a_sleep_that_does_not_come_is_not_waited_for() {
    let bench = Bench::with(Setting {
        vms_are_slow: true,
        ..WORKING
    });
    assert_eq!([bench.sees(), bench.sees()], [inhibited(), Seen::Finished]);
    for _ in 0..2 {
        bench.announce(true);
        assert!(matches!(bench.sees(), Seen::Prepared(_)));
        bench.announce(false);
        assert_eq!([bench.sees(), bench.sees()], [inhibited(), Seen::Finished]);
    }
    bench.announce(true);
    assert!(matches!(bench.sees(), Seen::Prepared(_)));
    bench.logind.clone().close().unwrap();
    let (error, seen) = bench.end();
    assert!(matches!(error, Error::Lost | Error::Bus(_)), "{error}");
    assert_eq!(seen, [], "its end is told by who comes next");
}

#[test]
fn s18_a_long_sleep_is_not_taken_for_a_forgotten_one() {
    let bench = Bench::with(Setting {
        look_every: OFTEN,
        ..WORKING
    });
    let lock = bench.lock();
    bench.announce(true);
    assert!(is_released(&lock, LONG));
    while bench.asked.load(Ordering::SeqCst) < 4 * LOOKS {
        sleep(OFTEN);
        assert!(bench.agent.try_recv().is_err(), "the agent gave up");
    }
}

#[test]
fn s18_who_comes_back_in_the_middle_of_a_sleep_does_not_end_it() {
    let asleep = Setting {
        is_preparing: true,
        ..WORKING
    };
    let (error, seen) = Bench::with(asleep).end();
    assert!(error.to_string().contains("already running"), "{error}");
    assert_eq!(seen, []);
}

#[test]
fn s18_a_logind_that_forgets_the_lock_is_left() {
    let bench = Bench::with(Setting {
        look_every: OFTEN,
        ..WORKING
    });
    drop(bench.lock());
    let (error, seen) = bench.end();
    assert!(matches!(error, Error::Lost | Error::Bus(_)), "{error}");
    assert_eq!(seen, [inhibited(), Seen::Finished]);
}

#[test]
fn s18_a_logind_that_forgets_the_sleep_is_left() {
    let bench = Bench::with(Setting {
        look_every: OFTEN,
        ..WORKING
    });
    let lock = bench.lock();
    bench.announce(true);
    assert!(is_released(&lock, LONG));
    // Another logind in its place: no sleep is under way, and no end of one will be announced.
    bench.is_preparing.store(false, Ordering::SeqCst);
    let (error, seen) = bench.end();
    assert!(matches!(error, Error::Lost | Error::Bus(_)), "{error}");
    assert_eq!(seen.len(), 3);
    assert!(
        matches!(seen[2], Seen::Prepared(_)),
        "its end is told by who comes next: {seen:?}"
    );
}

#[test]
fn s18_a_logind_that_gives_no_lock_is_an_error_with_its_reason() {
    let refusing = Setting {
        manner: Manner::Refuses,
        ..WORKING
    };
    let (error, seen) = Bench::with(refusing).end();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    assert_eq!(seen, []);
}

#[test]
fn s18_a_logind_that_does_not_answer_is_left() {
    let start = Instant::now();
    let silent = Setting {
        manner: Manner::SaysNothing,
        answer_limit: SHORT,
        ..WORKING
    };
    let (error, seen) = Bench::with(silent).end();
    assert!(start.elapsed() >= SHORT);
    assert!(matches!(error, Error::Bus(_)), "{error}");
    assert_eq!(seen, []);
}

#[test]
fn s18_no_logind_is_an_error() {
    let absent = Setting {
        path: "/somewhere/else",
        ..WORKING
    };
    let (error, seen) = Bench::with(absent).end();
    assert!(matches!(error, Error::Bus(_)), "{error}");
    assert_eq!(seen, []);
}
