//! Which resource does what.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::answers::{Events, Instance, VcpuHistory, VmState};
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
    /// The change that is under way.
    change: Mutex<Option<&'static str>>,
    /// Clients that follow the VM, know nothing of its end, and have not asked again. Some may have
    /// gone.
    followers: AtomicUsize,
}

impl Api {
    /// For this VM.
    pub fn new(vm: impl Vm) -> Self {
        Self {
            vm: Box::new(vm),
            change: Mutex::default(),
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
        let _under_way = UnderWay::enter(&self.change, name)?;
        change().map(|()| Response::no_content())
    }
}

/// A change that is under way, until this is dropped.
struct UnderWay<'a>(&'a Mutex<Option<&'static str>>);

impl<'a> UnderWay<'a> {
    fn enter(change: &'a Mutex<Option<&'static str>>, name: &'static str) -> Result<Self, Fault> {
        let mut under_way = change.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = *under_way {
            return Err(Fault::conflict(format!(
                "another client's {other} is under way; ask again when it is over"
            )));
        }
        *under_way = Some(name);
        Ok(Self(change))
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
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

/// What is announced for a VM that is paused anyway is no event.
fn host_sleep(api: &Api, request: &Request) -> Result<Response, Fault> {
    let HostSleep { phase } = parse(&request.body)?;
    let vm = api.vm();
    api.change("host sleep", || match (vm.state(), phase) {
        (state @ (VmState::NotStarted | VmState::InDoubt | VmState::Moved), _) => {
            Err(not_ours(state))
        }
        (_, SleepPhase::Prepare) => Ok(vm.prepare_sleep()?),
        (_, SleepPhase::Finish) => Ok(vm.finish_sleep()?),
    })
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

fn migrate(api: &Api, request: &Request) -> Result<Response, Fault> {
    let migrate: Migrate = parse(&request.body)?;
    migrate.check()?;
    let vm = api.vm();
    let _under_way = UnderWay::enter(&api.change, "migration")?;
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
