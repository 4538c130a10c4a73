//! A host on this very machine: the agent as a child, driven by the lab as everywhere else.

use lab::host::Host;
use lab::machine::HostSpec;
use lab_agent::message::{Exit, Spawn, Spawned};
use lab_agent::{WITHHOLD_ATTRIBUTES, WITHHOLD_COUNTER_OFFSET};
use rustix::process::Signal;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const AGENT: &str = env!("CARGO_BIN_EXE_lab-agent");
const LIMIT: Duration = Duration::from_secs(10);

/// A folder of its own for one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lab-agent-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn host(&self) -> Host {
        Host::local(&HostSpec::new("local"), Path::new(AGENT), &self.0).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn sleeper(host: &mut Host) -> Spawned {
    let argv = ["/bin/sleep", "1000"].map(str::to_owned).into();
    host.spawn(Spawn {
        argv,
        ..Spawn::default()
    })
    .unwrap()
}

fn shell(host: &mut Host, script: &str) -> lab::requests::Finished {
    host.run(&["/bin/sh", "-c", script], LIMIT).unwrap()
}

/// Whether the process is gone, soon.
fn ends(pid: u32) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn files_make_the_round_trip_whatever_their_length() {
    let folder = Folder::new("files");
    let mut host = folder.host();
    for len in [0, 1, (1 << 20) - 1, 1 << 20, (2 << 20) + 1] {
        let sent: Vec<u8> = (0..=255).cycle().take(len).collect();
        let path = host.file("file");
        host.put_file(&path, 0o600, &[0xa5; 77]).unwrap();
        host.put_file(&path, 0o600, &sent).unwrap();
        assert_eq!(host.read_from(&path, 0).unwrap(), sent);
        assert_eq!(host.read_from(&path, len as u64).unwrap(), b"");
    }
    let absent = host.file("absent");
    let error = format!("{:#}", host.read_from(&absent, 0).unwrap_err());
    assert!(
        error.contains("absent") && error.contains("No such file"),
        "{error}"
    );
}

#[test]
fn a_command_has_its_streams_status_and_environment() {
    let folder = Folder::new("command");
    let mut host = folder.host();
    let finished = shell(&mut host, "echo out; echo err >&2; exit 7");
    assert_eq!(finished.exit, Exit::Status(7));
    assert_eq!(
        (finished.stdout.as_str(), finished.stderr.as_str()),
        ("out\n", "err\n")
    );
    let finished = host
        .run_with(&["/bin/sh", "-c", "echo $WORD; pwd"], LIMIT, |spawn| {
            spawn.env = vec![("WORD".into(), "green".into())];
            spawn.cwd = Some("/proc".into());
        })
        .unwrap();
    assert_eq!(finished.stdout, "green\n/proc\n");
    let error = format!("{:#}", host.run(&["/no/such/program"], LIMIT).unwrap_err());
    assert!(error.contains("/no/such/program"), "{error}");
}

#[test]
fn a_child_talks_through_its_standard_input() {
    let folder = Folder::new("stdin");
    let mut host = folder.host();
    let stdout = host.file("out");
    let child = host
        .spawn(Spawn {
            argv: vec!["/bin/cat".into()],
            stdin: true,
            stdout: Some(stdout.clone()),
            ..Spawn::default()
        })
        .unwrap()
        .child;
    host.write_stdin(child, b"one\ntwo").unwrap();
    let found = host.wait_for_text(&stdout, "e\nt", LIMIT).unwrap();
    assert_eq!(found.offset, 2);
    let short = Duration::from_millis(30);
    let error = host
        .wait_for_text(&stdout, "three", short)
        .unwrap_err()
        .to_string();
    assert!(error.contains("three"), "{error}");
    assert!(host.wait(child, short).is_err(), "it still reads");
    host.close_stdin(child).unwrap();
    assert_eq!(host.wait(child, LIMIT).unwrap(), Exit::Status(0));
    assert_eq!(
        host.wait(child, LIMIT).unwrap(),
        Exit::Status(0),
        "an end can be asked for again"
    );
}

#[test]
fn a_child_runs_where_it_is_put_and_the_agent_stays_where_it_was() {
    let folder = Folder::new("cpus");
    let mut host = folder.host();
    let allowed = "grep Cpus_allowed_list /proc/self/status";
    let before = shell(&mut host, allowed).stdout;
    let pinned = host
        .run_with(&["/bin/sh", "-c", allowed], LIMIT, |it| it.cpus = vec![0])
        .unwrap();
    assert_eq!(pinned.stdout, "Cpus_allowed_list:\t0\n");
    assert_eq!(shell(&mut host, allowed).stdout, before);
    let nowhere = Spawn {
        argv: vec!["/bin/true".into()],
        cpus: vec![4096],
        ..Spawn::default()
    };
    let error = format!("{:#}", host.spawn(nowhere).unwrap_err());
    assert!(error.contains("4096"), "{error}");
    let child = sleeper(&mut host);
    host.pin_thread(child.pid, &[0]).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", child.pid)).unwrap();
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
}

#[test]
fn threads_come_with_what_the_scheduler_counted() {
    let folder = Folder::new("threads");
    let mut host = folder.host();
    let argv = ["/bin/sh", "-c", "while :; do :; done"]
        .map(str::to_owned)
        .into();
    let busy = host
        .spawn(Spawn {
            argv,
            ..Spawn::default()
        })
        .unwrap();
    let first = host.threads(busy.pid).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let second = host.threads(busy.pid).unwrap();
    let [before, after] = [&first, &second].map(|it| {
        assert_eq!(it.threads.len(), 1);
        (
            it.threads[0].run_ns + it.threads[0].run_delay_ns,
            it.threads[0].name.as_str(),
        )
    });
    assert_eq!((before.1, after.1), ("sh", "sh"));
    assert!(after.0 > before.0, "{} after {}", after.0, before.0);
    // A wait is counted at its end, so only the whole life of the thread bounds the sum.
    let life_ns = second.after_ns - busy.started_ns;
    assert!(after.0 <= life_ns, "{} of {life_ns}", after.0);
}

#[test]
fn the_end_of_a_child_ends_what_it_left_behind() {
    let folder = Folder::new("group");
    let mut host = folder.host();
    let finished = shell(&mut host, "sleep 1000 & echo $!");
    let left: u32 = finished.stdout.trim().parse().unwrap();
    assert!(ends(left), "process {left} runs on");
    let child = sleeper(&mut host);
    host.signal(child.child, Signal::TERM.as_raw()).unwrap();
    assert_eq!(
        host.wait(child.child, LIMIT).unwrap(),
        Exit::Signal(Signal::TERM.as_raw())
    );
    let error = host.signal(child.child, Signal::TERM.as_raw()).unwrap_err();
    assert!(format!("{error:#}").contains("has ended"), "{error:#}");
}

#[test]
fn everything_ends_with_the_host_however_it_ends() {
    let folder = Folder::new("ends");
    let mut host = folder.host();
    let child = sleeper(&mut host);
    host.kill_all().unwrap();
    assert!(ends(child.pid), "kill all");

    let child = sleeper(&mut host);
    let agent = host.pid();
    host.power_off().unwrap();
    assert!(ends(child.pid) && ends(agent), "power off");

    let mut host = folder.host();
    let (child, agent) = (sleeper(&mut host), host.pid());
    drop(host);
    assert!(ends(child.pid) && ends(agent), "drop");

    let (mut child, mut agent) = (0, 0);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut host = folder.host();
        (child, agent) = (sleeper(&mut host).pid, host.pid());
        panic!("a scenario that panics");
    }));
    assert!(panicked.is_err());
    assert!(ends(child) && ends(agent), "panic");
}

#[test]
fn a_host_whose_agent_was_killed_says_so_and_leaves_nothing() {
    let folder = Folder::new("killed");
    let mut host = folder.host();
    let child = sleeper(&mut host);
    let agent = rustix::process::Pid::from_raw(host.pid().try_into().unwrap()).unwrap();
    rustix::process::kill_process(agent, Signal::KILL).unwrap();
    assert!(ends(child.pid), "the child of a killed agent runs on");
    let error = format!("{:#}", host.processes().unwrap_err());
    assert!(
        error.contains("host local") && error.contains("cannot reach the host"),
        "{error}"
    );
    let error = format!("{:#}", host.processes().unwrap_err());
    assert!(error.contains("no more calls"), "{error}");
}

#[test]
fn a_program_from_which_something_is_withheld_runs_under_a_filter() {
    let folder = Folder::new("withhold");
    let mut host = folder.host();
    let agent = host.facts().agent_program.clone();
    let script = "grep Seccomp /proc/self/status | tr -d '\\n\\t'";
    for (withhold, filters) in [(WITHHOLD_ATTRIBUTES, 1), (WITHHOLD_COUNTER_OFFSET, 2)] {
        let filtered = host.run(&[&agent, withhold, "/bin/sh", "-c", script], LIMIT);
        let said = format!("Seccomp:2Seccomp_filters:{filters}");
        assert_eq!(filtered.unwrap().stdout.trim(), said);
    }
    let said = shell(&mut host, script).stdout;
    assert_eq!(said.trim(), "Seccomp:0Seccomp_filters:0");
    let absent = host
        .run(&[&agent, WITHHOLD_ATTRIBUTES, "/absent"], LIMIT)
        .unwrap();
    assert_eq!(absent.exit, Exit::Status(1));
    assert!(absent.stderr.contains("cannot start /absent"), "{absent:?}");
}
