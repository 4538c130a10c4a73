//! The control socket: HTTP over a Unix socket, with JSON.
//!
//! | resource | method | is |
//! |---|---|---|
//! | `/` | GET | the VM: what runs it, its state |
//! | `/time` | GET | its clocks, and where each vCPU's time went |

pub mod client;
mod http;

mod server;

pub use server::Server;

use http::{Request, Response};
use serde_json::{Value, json};

/// What the resources are made from.
pub trait Resources: Send + 'static {
    /// The body of `/time`.
    ///
    /// # Errors
    ///
    /// Where the accounts cannot be read.
    fn time(&self) -> anyhow::Result<Value>;
}

/// Answers one request.
fn answer(resources: &impl Resources, request: &Request) -> Response {
    let body = match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/") => Ok(json!({
            "app_name": "pvtime",
            "vmm_version": env!("CARGO_PKG_VERSION"),
            "state": "Running",
        })),
        ("GET", "/time") => resources.time(),
        (_, "/" | "/time") => {
            return Response::fault(405, "this resource can be read only: use GET");
        }
        (_, path) => {
            return Response::fault(404, &format!("there is no {path}; GET / and /time exist"));
        }
    };
    match body {
        Ok(body) => Response::new(200, &body),
        Err(error) => Response::fault(500, &format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Result<u64, &'static str>);

    impl Resources for Fixed {
        fn time(&self) -> anyhow::Result<Value> {
            self.0
                .map(|elapsed_ns| json!({ "elapsed_ns": elapsed_ns }))
                .map_err(anyhow::Error::msg)
        }
    }

    fn get(resources: &Fixed, method: &str, path: &str) -> (u16, Value) {
        let request = Request {
            method: method.into(),
            path: path.into(),
        };
        let response = answer(resources, &request);
        (
            response.status,
            serde_json::from_slice(&response.body).unwrap(),
        )
    }

    #[test]
    fn resources_are_found_by_name_and_method() {
        let fixed = Fixed(Ok(7));
        assert_eq!(get(&fixed, "GET", "/").1["app_name"], "pvtime");
        assert_eq!(get(&fixed, "GET", "/time"), (200, json!({"elapsed_ns": 7})));
        assert_eq!(get(&fixed, "PUT", "/time").0, 405);
        let (status, fault) = get(&fixed, "GET", "/nothing");
        assert_eq!(status, 404);
        assert_eq!(
            fault["fault_message"],
            "there is no /nothing; GET / and /time exist"
        );
    }

    #[test]
    fn a_failure_is_said() {
        let (status, fault) = get(&Fixed(Err("the thread has ended")), "GET", "/time");
        assert_eq!(
            (status, &fault["fault_message"]),
            (500, &json!("the thread has ended"))
        );
    }
}
