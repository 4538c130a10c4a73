//! What clients may ask for, checked. A refusal names the field.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Fault;
use crate::migration::address::Address;
use crate::migration::tls;

/// Longest wait for an event.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// `PATCH /vm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeState {
    /// What the VM is to do.
    pub state: WantedState,
}

/// What a VM can be told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantedState {
    /// Stop for a while.
    Paused,
    /// Go on.
    Resumed,
    /// Go on here, after an operator made sure that no other host runs it.
    TakenOver,
}

/// `PUT /migration`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// Where to: what `pvtime receive` was given there.
    pub destination: Address,
    /// Whether to ask and no more.
    #[serde(default)]
    pub dry_run: bool,
    /// The most MiB per second while the guest runs; absent for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_mib_s: Option<NonZero<u32>>,
    /// How long the VM may be stopped, as far as one can tell beforehand, in ms.
    #[serde(default = "default_downtime_ms")]
    pub downtime_ms: u32,
    /// After how long a VM that was stopped goes on here if it is not ready to run there, in ms;
    /// absent for ten times the downtime, and 10 s at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_limit_ms: Option<u32>,
    /// Whether memory may leave this machine in the clear.
    #[serde(default)]
    pub insecure: bool,
    /// The files that both sides prove themselves with; absent where the stream is in the clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<tls::Files>,
}

impl Migrate {
    /// Refuses files that are named by where the client is, and security that is none.
    ///
    /// # Errors
    ///
    /// What is wrong with the field.
    pub fn check(&self) -> Result<(), Fault> {
        let Some(files) = &self.tls else {
            return Ok(());
        };
        if self.insecure {
            return Err(Fault::bad_request(
                "the field insecure: with tls nothing is in the clear; leave one of them out"
                    .into(),
            ));
        }
        for (field, path) in [
            ("cert", &files.cert),
            ("key", &files.key),
            ("ca", &files.ca),
        ] {
            check_absolute(&format!("tls.{field}"), path)?;
        }
        Ok(())
    }
}

impl CreateSnapshot {
    /// Refuses a folder that is named by where the client is.
    ///
    /// # Errors
    ///
    /// What is wrong with the field.
    pub fn check(&self) -> Result<(), Fault> {
        check_absolute("snapshot_path", &self.snapshot_path)
    }
}

fn check_absolute(field: &str, path: &Path) -> Result<(), Fault> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(Fault::bad_request(format!(
        "the field {field}: {} is relative, and the VMM's folder is not yours; give a path that \
         begins with /",
        path.display()
    )))
}

/// What `pvtime migrate --downtime` is by default.
pub const DEFAULT_DOWNTIME_MS: u32 = 300;

const fn default_downtime_ms() -> u32 {
    DEFAULT_DOWNTIME_MS
}

/// `PATCH /migration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeMigration {
    /// What is to become of it.
    pub state: WantedMigration,
}

/// What a migration can be told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantedMigration {
    /// End; the VM stays.
    Cancelled,
}

/// `PUT /snapshot/create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// The folder to make.
    pub snapshot_path: PathBuf,
}

/// `PUT /actions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// Which.
    pub action_type: ActionType,
}

/// What else a VM can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionType {
    /// End.
    Stop,
}

/// `PUT /time/host-sleep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSleep {
    /// Which end of the sleep.
    pub phase: SleepPhase,
}

/// An end of the host's sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SleepPhase {
    /// It is about to begin.
    Prepare,
    /// It is over, or does not happen.
    Finish,
}

/// The query of `GET /time/events`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventsQuery {
    /// Records after this number.
    pub after: u64,
    /// For how long to wait for the first.
    pub wait: Duration,
}

/// The query of `GET /time/history`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryQuery {
    /// The vCPU's index.
    pub vcpu: usize,
}

/// Parses a JSON body.
///
/// # Errors
///
/// Where it is none, or has a field too few, too many or of another type.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let refuse =
        |what: &str, error: &dyn std::fmt::Display| Fault::bad_request(format!("{what}: {error}"));
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        match field.as_str() {
            "." => refuse("the body is not what this resource takes", error.inner()),
            field => refuse(&format!("the field {field}"), error.inner()),
        }
    })?;
    json.end()
        .map_err(|error| refuse("the body has more than one JSON value", &error))?;
    Ok(value)
}

impl EventsQuery {
    /// Parses `after=N&wait_ms=M`, each of which may be absent.
    ///
    /// # Errors
    ///
    /// For other names, what is no number, and waits over [`MAX_WAIT`].
    pub fn parse(query: &str) -> Result<Self, Fault> {
        let mut parsed = Self::default();
        for (name, value) in pairs(query) {
            match name {
                "after" => parsed.after = number(name, value)?,
                "wait_ms" => parsed.wait = Duration::from_millis(number(name, value)?),
                _ => return Err(unknown(name, "after and wait_ms")),
            }
        }
        if parsed.wait > MAX_WAIT {
            return Err(Fault::bad_request(format!(
                "wait_ms is {} and may be {} at most; ask again when it is over",
                parsed.wait.as_millis(),
                MAX_WAIT.as_millis()
            )));
        }
        Ok(parsed)
    }
}

impl HistoryQuery {
    /// Parses `vcpu=N`; 0 where it is absent.
    ///
    /// # Errors
    ///
    /// For other names and what is no number.
    pub fn parse(query: &str) -> Result<Self, Fault> {
        let mut parsed = Self::default();
        for (name, value) in pairs(query) {
            match name {
                // No VM has as many as do not fit.
                "vcpu" => parsed.vcpu = usize::try_from(number(name, value)?).unwrap_or(usize::MAX),
                _ => return Err(unknown(name, "vcpu")),
            }
        }
        Ok(parsed)
    }
}

/// Refuses any query.
///
/// # Errors
///
/// For a query.
pub fn no_query(query: &str) -> Result<(), Fault> {
    match pairs(query).next() {
        Some((name, _)) => Err(unknown(name, "nothing")),
        None => Ok(()),
    }
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn number(name: &str, value: &str) -> Result<u64, Fault> {
    value.parse().map_err(|_| {
        Fault::bad_request(format!(
            "{name} is {value:?} and has to be a whole number up to 2^64 - 1"
        ))
    })
}

fn unknown(name: &str, known: &str) -> Fault {
    Fault::bad_request(format!(
        "{name:?} cannot be asked for here; this resource's query knows {known}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal<T: DeserializeOwned + std::fmt::Debug>(body: &str) -> String {
        let fault = parse::<T>(body.as_bytes()).unwrap_err();
        assert_eq!(fault.status, 400);
        fault.message
    }

    #[test]
    fn bodies_are_read() {
        let change: ChangeState = parse(br#" {"state": "Paused"} "#).unwrap();
        assert_eq!(change.state, WantedState::Paused);
        let snapshot: CreateSnapshot = parse(br#"{"snapshot_path":"/a b"}"#).unwrap();
        assert_eq!(snapshot.snapshot_path, PathBuf::from("/a b"));
        let action: Action = parse(br#"{"action_type":"Stop"}"#).unwrap();
        assert_eq!(action.action_type, ActionType::Stop);
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (body, expected) in [
            (
                r#"{"state":"Stopped"}"#,
                "the field state: unknown variant `Stopped`, expected one of `Paused`, `Resumed`, `TakenOver`",
            ),
            (r#"{"state":7}"#, "the field state: "),
            (r#"{"state":null}"#, "the field state: "),
            (
                r#"{"state":"Paused","when":1}"#,
                "unknown field `when`, expected `state`",
            ),
            ("{}", "missing field `state`"),
            (
                r#"{"state":"Paused","state":"Paused"}"#,
                "duplicate field `state`",
            ),
            ("[]", "the body is not what this resource takes"),
            ("", "the body is not what this resource takes"),
            ("{\"state\"", "EOF"),
            (
                r#"{"state":"Paused"}{}"#,
                "the body has more than one JSON value",
            ),
            ("{\"state\":\"\u{fffd}\"}", "the field state: "),
        ] {
            let message = refusal::<ChangeState>(body);
            assert!(message.contains(expected), "{body}: {message}");
        }
        let message = refusal::<CreateSnapshot>(r#"{"snapshot_path":7}"#);
        assert!(
            message.starts_with("the field snapshot_path: invalid type: integer"),
            "{message}"
        );
        let message = refusal::<Action>(r#"{"action_type":"InstanceStart"}"#);
        assert!(
            message.starts_with("the field action_type: unknown variant"),
            "{message}"
        );
        assert_eq!(parse::<Action>(b"\xff").unwrap_err().status, 400);
        let deep = format!("{{\"state\":{}", "[".repeat(60_000));
        assert!(refusal::<ChangeState>(&deep).contains("the field state: "));
    }

    #[test]
    fn queries_are_read_and_refused_by_name() {
        let query = |after, wait_ms| EventsQuery {
            after,
            wait: Duration::from_millis(wait_ms),
        };
        assert_eq!(EventsQuery::parse(""), Ok(query(0, 0)));
        assert_eq!(EventsQuery::parse("wait_ms=60000"), Ok(query(0, 60_000)));
        assert_eq!(
            EventsQuery::parse("after=18446744073709551615&wait_ms=5"),
            Ok(query(u64::MAX, 5))
        );
        for (text, expected) in [
            ("after=-1", "after is \"-1\""),
            ("after=", "after is \"\""),
            ("after", "after is \"\""),
            ("after=18446744073709551616", "after is "),
            ("wait_ms=60001", "wait_ms is 60001 and may be 60000 at most"),
            ("afterwards=1", "\"afterwards\" cannot be asked for here"),
        ] {
            let message = EventsQuery::parse(text).unwrap_err().message;
            assert!(message.starts_with(expected), "{message}");
        }
        assert_eq!(HistoryQuery::parse(""), Ok(HistoryQuery { vcpu: 0 }));
        assert_eq!(HistoryQuery::parse("vcpu=3"), Ok(HistoryQuery { vcpu: 3 }));
        assert!(
            HistoryQuery::parse("vcpu=x")
                .unwrap_err()
                .message
                .starts_with("vcpu is \"x\"")
        );
        assert!(
            HistoryQuery::parse("cpu=1")
                .unwrap_err()
                .message
                .starts_with("\"cpu\"")
        );
        assert_eq!(no_query(""), Ok(()));
        assert!(no_query("x=1").unwrap_err().message.starts_with("\"x\""));
    }
}
