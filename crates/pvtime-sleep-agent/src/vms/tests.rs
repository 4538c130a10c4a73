use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Receiver;

use super::*;

/// More than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// A VM's control socket, which says what it was told.
struct FakeVm {
    told: Receiver<String>,
}

impl FakeVm {
    /// One that has these answers to its first requests, and does what it is told from then on.
    fn start(socket: &Path, first: &'static [&str]) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let (tell, told) = channel();
        thread::spawn(move || {
            let answers = first.iter().chain(std::iter::repeat(&DONE));
            for (stream, answer) in listener.incoming().zip(answers) {
                let mut stream = stream.unwrap();
                let request = read_request(&mut stream);
                stream.write_all(answer.as_bytes()).unwrap();
                let _ = tell.send(request);
            }
        });
        Self { told }
    }

    /// The next request.
    fn hears(&self) -> String {
        self.told.recv_timeout(LONG).unwrap()
    }
}

const DONE: &str = "HTTP/1.1 204 No Content\r\n\r\n";
const BUSY: &str =
    "HTTP/1.1 409 Conflict\r\nContent-Length: 26\r\n\r\n{\"fault_message\":\"saving\"}";
const GONE: &str = "HTTP/1.1 410 Gone\r\nContent-Length: 24\r\n\r\n{\"fault_message\":\"over\"}";
const BROKEN: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 26\r\n\r\n{\"fault_message\":\"broken\"}";

const WITHOUT_VM: &str =
    "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 26\r\n\r\n{\"fault_message\":\"no VM!\"}";

const PREPARE: &str = "PUT /time/host-sleep {\"phase\":\"Prepare\"}";
const FINISH: &str = "PUT /time/host-sleep {\"phase\":\"Finish\"}";

/// Method, path and body of a request, whose body is one flat object.
fn read_request(stream: &mut UnixStream) -> String {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(b"}") {
        stream.read_exact(&mut byte).unwrap();
        text.extend(byte);
    }
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let (what, _) = head.split_once(" HTTP/1.1\r\n").unwrap();
    format!("{what} {body}")
}

#[test]
fn s18_every_vm_is_told_and_a_slow_one_keeps_no_other_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let vms = Vms::new(folder.path());
    let of = |name| folder.path().join(name);
    let [first, second] = ["a.sock", "c.sock"].map(|name| FakeVm::start(&of(name), &[]));
    let other = FakeVm::start(&of("e.socket"), &[]);
    // It takes connections and says nothing.
    let _silent = UnixListener::bind(of("b.sock")).unwrap();
    fs::write(of("d.sock"), "no socket").unwrap();

    let (limit, start) = (Duration::from_millis(500), Instant::now());
    vms.prepare(limit, &|| false);
    assert!(start.elapsed() >= limit, "the silent one may be ready yet");
    for vm in [&first, &second] {
        assert_eq!(vm.hears(), PREPARE);
    }
    fs::remove_file(of("b.sock")).unwrap();
    vms.finish();
    for vm in [&first, &second] {
        assert_eq!(vm.hears(), FINISH);
    }
    assert!(other.told.try_recv().is_err(), "it is none of the VMs");
}

#[test]
fn s18_no_vm_keeps_nobody_waiting() {
    let start = Instant::now();
    Vms::new(Path::new("/absent")).prepare(LONG, &|| false);
    assert!(start.elapsed() < LONG);
}

/// Whoever asks next.
fn next(listener: &UnixListener) -> UnixStream {
    let start = Instant::now();
    listener.set_nonblocking(true).unwrap();
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            return stream;
        }
        assert!(start.elapsed() < LONG, "nobody asks");
        sleep(Duration::from_millis(5));
    }
}

/// Answers the next request, which is this one, after doing something.
fn answer(listener: &UnixListener, request: &str, answer: &str, first: impl FnOnce()) {
    let mut stream = next(listener);
    assert_eq!(read_request(&mut stream), request);
    first();
    stream.write_all(answer.as_bytes()).unwrap();
}

#[test]
fn s18_the_end_is_told_after_a_beginning_that_is_late() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let vm = thread::spawn(move || {
        let mut stream = next(&listener);
        assert_eq!(read_request(&mut stream), PREPARE);
        // It has not taken that up when it is called off, and does so afterwards.
        answer(&listener, FINISH, DONE, || ());
        answer(&listener, FINISH, DONE, || drop(stream));
        answer(&listener, FINISH, DONE, || ());
    });
    let vms = Vms::new(folder.path());
    vms.prepare(ASK_AGAIN, &|| false);
    vms.finish();
    vm.join().unwrap();
}

#[test]
fn s18_the_end_calls_off_a_beginning_that_waits_for_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (tell, told) = channel();
    let vm = thread::spawn(move || {
        let mut asking = next(&listener);
        assert_eq!(read_request(&mut asking), PREPARE);
        tell.send(()).unwrap();
        answer(&listener, FINISH, DONE, || {
            asking.write_all(GONE.as_bytes()).unwrap();
        });
        // The preparation has failed by then, or is about to.
        answer(&listener, FINISH, DONE, || ());
    });
    let vms = Vms::new(folder.path());
    let start = Instant::now();
    vms.prepare(LONG, &|| told.try_recv().is_ok());
    vms.finish();
    assert!(start.elapsed() < FINISH_LIMIT, "nobody waits for the guest");
    vm.join().unwrap();
}

#[test]
fn s18_a_vm_that_does_something_else_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a.sock");
    let vm = FakeVm::start(&socket, &[BUSY, BUSY]);
    tell(&socket, SleepPhase::Prepare, LONG).unwrap();
    assert_eq!([vm.hears(), vm.hears(), vm.hears()], [PREPARE; 3]);
    assert!(vm.told.try_recv().is_err(), "it had done it");
}

#[test]
fn s18_a_vmm_that_awaits_its_vm_has_none_to_tell() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vm.sock");
    let vm = FakeVm::start(&socket, &[WITHOUT_VM, WITHOUT_VM]);
    for phase in [SleepPhase::Prepare, SleepPhase::Finish] {
        tell(&socket, phase, LONG).unwrap();
    }
    assert_eq!([vm.hears(), vm.hears()], [PREPARE, FINISH]);
}

#[test]
fn s18_a_vm_that_refuses_is_asked_once_and_one_that_is_busy_until_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name| folder.path().join(name);
    let vm = FakeVm::start(&of("a.sock"), &[BROKEN]);
    let error = tell(&of("a.sock"), SleepPhase::Prepare, LONG).unwrap_err();
    assert_eq!(error.to_string(), "the VM refuses: broken");
    assert_eq!(vm.hears(), PREPARE);
    assert!(vm.told.try_recv().is_err(), "it had refused");

    let _vm = FakeVm::start(&of("b.sock"), &[BUSY]);
    let error = tell(&of("b.sock"), SleepPhase::Finish, Duration::ZERO).unwrap_err();
    assert_eq!(error.to_string(), "the VM refuses: saving");
}
