//! Which resource does what.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::answers::{Events, Instance, Prepared, VcpuHistory, VmState};
use super::http::{Request, Response};
use super::requests::{
    Action, ActionType, ChangeMigration, ChangeState, CreateSnapshot, EventsQuery, HistoryQuery,
    HostSleep, Migrate, SleepPhase, WantedMigration, WantedState, no_query, parse,
};
use super::{Fault, Vm};
use crate::migration::ownership::NotOurs;

/// A method of a resource.
pub struct Route {
    /// In capitals.
    pub method: &'static str,
    /// From the first slash on.
    pub path: &'static str,
    answer: fn(&Api, &Request) -> Result<Response, Fault>,
}

/// All there is.
pub const ROUTES: &[Route] = &[
    route("GET", "/", instance),
    route("PATCH", "/vm", change_state),
    route("PUT", "/snapshot/create", create_snapshot),
    route("GET", "/snapshot", saving),
    route("PUT", "/migration", migrate),
    route("PATCH", "/migration", change_migration),
    route("GET", "/migration", migration),
    route("PUT", "/actions", act),
    route("GET", "/time", time),
    route("GET", "/time/ledger", ledger),
    route("GET", "/time/events", events),
    route("PUT", "/time/host-sleep", host_sleep),
    route("GET", "/time/history", history),
];

const fn route(
    method: &'static str,
    path: &'static str,
    answer: fn(&Api, &Request) -> Result<Response, Fault>,
) -> Route {
    Route {
        method,
        path,
        answer,
    }
}

/// A VM and who changes it.
pub struct Api {
    vm: Box<dyn Vm>,
    changes: Changes,
    /// Clients that follow the VM, know nothing of its end, and have not asked again. Some may have
    /// gone.
    followers: AtomicUsize,
}

impl Api {
    /// For this VM.
    pub fn new(vm: impl Vm) -> Self {
        Self {
            vm: Box::new(vm),
            changes: Changes::default(),
            followers: AtomicUsize::new(0),
        }
    }

    /// The VM.
    pub fn vm(&self) -> &dyn Vm {
        &*self.vm
    }

    /// Whether a client that follows the VM is about to ask again.
    pub fn expects_followers(&self) -> bool {
        self.followers.load(Ordering::SeqCst) > 0
    }

    /// Answers one request.
    pub fn answer(&self, request: &Request) -> Response {
        let of_path = || ROUTES.iter().filter(|it| it.path == request.path);
        let answered = match of_path().find(|it| it.method == request.method) {
            Some(route) => check_shape(request).and_then(|()| (route.answer)(self, request)),
            None if of_path().next().is_some() => {
                let allowed: Vec<_> = of_path().map(|it| it.method).collect();
                return Response::not_allowed(&request.path, &allowed.join(", "));
            }
            None => Err(no_such_path(&request.path)),
        };
        answered.unwrap_or_else(|fault| Response::fault(&fault))
    }

    /// Does one change, unless another is under way. A change does not wait for another: what its
    /// sender believed of the VM would be past.
    fn change(
        &self,
        name: &'static str,
        change: impl FnOnce() -> Result<(), Fault>,
    ) -> Result<Response, Fault> {
        let _under_way = self.changes.enter(name)?;
        change().map(|()| Response::no_content())
    }
}

/// The change that is under way.
#[derive(Default)]
struct Changes {
    under_way: Mutex<Option<&'static str>>,
    over: Condvar,
}

/// How often a change is asked to make way.
const ASK_EVERY: Duration = Duration::from_millis(50);

impl Changes {
    fn enter(&self, name: &'static str) -> Result<UnderWay<'_>, Fault> {
        self.enter_locked(self.lock(), name)
    }

    /// The same, after a change that ends soon because it is asked to. It is asked more than once: it
    /// may just have begun, and not be where it hears that.
    fn enter_after(
        &self,
        first: &'static str,
        make_way: impl Fn(),
        name: &'static str,
    ) -> Result<UnderWay<'_>, Fault> {
        let mut under_way = self.lock();
        while *under_way == Some(first) {
            make_way();
            let waited = self.over.wait_timeout(under_way, ASK_EVERY);
            under_way = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.enter_locked(under_way, name)
    }

    fn enter_locked(
        &self,
        mut under_way: MutexGuard<'_, Option<&'static str>>,
        name: &'static str,
    ) -> Result<UnderWay<'_>, Fault> {
        if let Some(other) = *under_way {
            return Err(Fault::conflict(format!(
                "another client's {other} is under way; ask again when it is over"
            )));
        }
        *under_way = Some(name);
        Ok(UnderWay(self))
    }

    fn lock(&self) -> MutexGuard<'_, Option<&'static str>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change that is under way, until this is dropped.
struct UnderWay<'a>(&'a Changes);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
        self.0.over.notify_all();
    }
}

fn no_such_path(path: &str) -> Fault {
    let mut known: Vec<_> = ROUTES.iter().map(|it| it.path).collect();
    known.dedup();
    Fault {
        status: 404,
        message: format!("there is no {path}; there are {}", known.join(", ")),
    }
}

/// Reading takes no body, and changing takes no query.
fn check_shape(request: &Request) -> Result<(), Fault> {
    if request.method != "GET" {
        return no_query(&request.query);
    }
    if request.body.is_empty() {
        return Ok(());
    }
    Err(Fault::bad_request(format!(
        "GET {} takes no body; leave it out",
        request.path
    )))
}

fn instance(api: &Api, request: &Request) -> Result<Response, Fault> {
    no_query(&request.query)?;
    Ok(Response::ok(&Instance {
        app_name: "pvtime".into(),
        id: api.vm().id().into(),
        state: api.vm().state(),
        vmm_version: env!("CARGO_PKG_VERSION").into(),
    }))
}

/// A VM that is in the wanted state already stays in it, and that is no event.
fn change_state(api: &Api, request: &Request) -> Result<Response, Fault> {
    let ChangeState { state } = parse(&request.body)?;
    let vm = api.vm();
    match state {
        WantedState::Paused => api.change("pause", || match vm.state() {
            VmState::Running => Ok(vm.pause()?),
            VmState::Paused => Ok(()),
            state => Err(not_ours(state)),
        }),
        WantedState::Resumed => api.change("resume", || match vm.state() {
            VmState::Running => Ok(()),
            VmState::Paused | VmState::Suspended => Ok(vm.resume()?),
            state => Err(not_ours(state)),
        }),
        WantedState::TakenOver => api.change("take-over", || match vm.state() {
            VmState::Running => Ok(()),
            VmState::Paused | VmState::Suspended | VmState::InDoubt => Ok(vm.take_over()?),
            state => Err(not_ours(state)),
        }),
    }
}

/// Why a VM in this state does nothing that it is told.
fn not_ours(state: VmState) -> Fault {
    Fault::conflict(match state {
        VmState::InDoubt => NotOurs::InDoubt.to_string(),
        VmState::Moved => "the VM runs on another host now; ask there".into(),
        VmState::NotStarted => return not_started(),
        VmState::Suspended => {
            "the guest has suspended itself, and nothing of it runs; resume it to wake it".into()
        }
        VmState::Running | VmState::Paused => format!("the VM is {state}; ask again"),
    })
}

/// The beginning of a host's sleep, as a change.
const PREPARATION: &str = "prepare-sleep";

/// What is announced for a VM that is paused anyway is no event. The end of a sleep does not wait for a
/// guest that is slow with its beginning.
fn host_sleep(api: &Api, request: &Request) -> Result<Response, Fault> {
    let HostSleep { phase } = parse(&request.body)?;
    let vm = api.vm();
    let is_ours = || match vm.state() {
        state @ (VmState::NotStarted | VmState::InDoubt | VmState::Moved) => Err(not_ours(state)),
        VmState::Running | VmState::Paused | VmState::Suspended => Ok(()),
    };
    match phase {
        SleepPhase::Prepare => api.change(PREPARATION, || {
            is_ours()?;
            match vm.prepare_sleep()? {
                Prepared::Stopped => Ok(()),
                Prepared::CalledOff => Err(called_off()),
            }
        }),
        SleepPhase::Finish => {
            let make_way = || vm.call_off_sleep();
            let changes = &api.changes;
            let _under_way = changes.enter_after(PREPARATION, make_way, "finish-sleep")?;
            is_ours()?;
            vm.finish_sleep()?;
            Ok(Response::no_content())
        }
    }
}

/// Not a conflict, after which the same can be asked for again.
fn called_off() -> Fault {
    Fault {
        status: 410,
        message: "the sleep was said to be over (finish-sleep) before the guest had suspended itself, and \
                  the VM runs; announce the next sleep when it comes"
            .into(),
    }
}

fn not_started() -> Fault {
    Fault::conflict("the VM was not started yet; ask again in a moment".into())
}

fn create_snapshot(api: &Api, request: &Request) -> Result<Response, Fault> {
    let create: CreateSnapshot = parse(&request.body)?;
    create.check()?;
    let vm = api.vm();
    api.change("snapshot", || match vm.state() {
        VmState::Running | VmState::Paused | VmState::Suspended => {
            Ok(vm.snapshot(&create.snapshot_path)?)
        }
        state => Err(not_ours(state)),
    })
}

fn saving(api: &Api, request: &Request) -> Result<Response, Fault> {
    no_query(&request.query)?;
    Ok(Response::ok(&api.vm().saving()))
}

fn migrate(api: &Api, request: &Request) -> Result<Response, Fault> {
    let migrate: Migrate = parse(&request.body)?;
    migrate.check()?;
    let vm = api.vm();
    let _under_way = api.changes.enter("migration")?;
    match vm.state() {
        VmState::Running | VmState::Paused | VmState::Suspended => {
            Ok(Response::ok(&vm.migrate(&migrate)?))
        }
        state => Err(not_ours(state)),
    }
}

/// Not a change that waits for its turn: it is for the one that is under way.
fn change_migration(api: &Api, request: &Request) -> Result<Response, Fault> {
    let ChangeMigration { state } = parse(&request.body)?;
    match state {
        WantedMigration::Cancelled => api.vm().cancel_migration(),
    }
    Ok(Response::no_content())
}

fn migration(api: &Api, request: &Request) -> Result<Response, Fault> {
    no_query(&request.query)?;
    Ok(Response::ok(&api.vm().migration()))
}

fn act(api: &Api, request: &Request) -> Result<Response, Fault> {
    let Action { action_type } = parse(&request.body)?;
    match action_type {
        ActionType::Stop => api.change("stop", || {
            api.vm().stop();
            Ok(())
        }),
    }
}

fn time(api: &Api, request: &Request) -> Result<Response, Fault> {
    no_query(&request.query)?;
    Ok(Response::ok(&api.vm().time()?))
}

fn ledger(api: &Api, request: &Request) -> Result<Response, Fault> {
    no_query(&request.query)?;
    Ok(Response::ok(&api.vm().ledger()?))
}

fn events(api: &Api, request: &Request) -> Result<Response, Fault> {
    let EventsQuery { after, wait } = EventsQuery::parse(&request.query)?;
    let records = api.vm().records();
    let follows = !wait.is_zero();
    if follows {
        let less_one = |followers: usize| followers.checked_sub(1);
        // A new follower is not among those that are expected.
        let _ = api
            .followers
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less_one);
    }
    let mut events = records.after(after, wait);
    // In this order: a record that is added meanwhile makes `last` larger than those given, and
    // the client asks again, even if the VM has ended.
    let ended = records.is_finished();
    let last = records.last();
    events.truncate(Events::PAGE);
    let given = events.last().map_or(after, |record| record.sequence);
    if follows && !(ended && given >= last) {
        api.followers.fetch_add(1, Ordering::SeqCst);
    }
    Ok(Response::ok(&Events {
        events,
        last,
        ended,
    }))
}

fn history(api: &Api, request: &Request) -> Result<Response, Fault> {
    let HistoryQuery { vcpu } = HistoryQuery::parse(&request.query)?;
    let samples = api.vm().history(vcpu).ok_or_else(|| {
        Fault::bad_request(format!(
            "vcpu is {vcpu}, and this VM has none of that number; GET /time lists them"
        ))
    })?;
    Ok(Response::ok(&VcpuHistory { vcpu, samples }))
}

#[cfg(test)]
mod tests;
