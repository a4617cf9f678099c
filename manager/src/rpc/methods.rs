//! The methods that figures are kept for: a closed set, so that no caller makes figures by asking for what is not there.

use axum::extract::{MatchedPath, Request};
use http::{Response, StatusCode};
use tonic::Code;

/// gRPC methods, after `/rcluster.v1.`; in order.
const GRPC: [&str; 25] = [
    "Admission/Join",
    "Admission/Renew",
    "Control/Apply",
    "Control/Autolock",
    "Control/Backup",
    "Control/Cluster",
    "Control/CreateUser",
    "Control/DropAuthorities",
    "Control/JoinToken",
    "Control/List",
    "Control/Logs",
    "Control/Relay",
    "Control/Remove",
    "Control/RotateAuthority",
    "Control/Scale",
    "Control/UpdateManager",
    "Control/UpdateNode",
    "Control/UpdatePools",
    "Control/View",
    "Control/Watch",
    "Dispatcher/PublishLogs",
    "Dispatcher/Relay",
    "Dispatcher/Session",
    "Raft/Send",
    "Raft/SendSnapshot",
];
/// REST, by the path's pattern; in order.
const REST: [(&str, &str); 28] = [
    ("/healthz", "GET"),
    ("/metrics", "GET"),
    ("/v1/cluster", "GET"),
    ("/v1/configs", "GET"),
    ("/v1/configs/{name}", "DELETE"),
    ("/v1/configs/{name}", "GET"),
    ("/v1/configs/{name}", "PUT"),
    ("/v1/events", "GET"),
    ("/v1/networks", "GET"),
    ("/v1/networks/{name}", "DELETE"),
    ("/v1/networks/{name}", "GET"),
    ("/v1/networks/{name}", "PUT"),
    ("/v1/nodes", "GET"),
    ("/v1/nodes/{name}", "GET"),
    ("/v1/secrets", "GET"),
    ("/v1/secrets/{name}", "DELETE"),
    ("/v1/secrets/{name}", "GET"),
    ("/v1/secrets/{name}", "PUT"),
    ("/v1/services", "GET"),
    ("/v1/services/{name}", "DELETE"),
    ("/v1/services/{name}", "GET"),
    ("/v1/services/{name}", "PUT"),
    ("/v1/services/{name}/scale", "POST"),
    ("/v1/tasks", "GET"),
    ("/v1/tasks/{name}", "GET"),
    ("/v1/users", "GET"),
    ("/v1/watch", "GET"),
    ("other", "other"),
];
/// How many there are.
pub const METHODS: usize = GRPC.len() + REST.len();
/// Before the path of a gRPC method.
pub const GRPC_PREFIX: &str = "/rcluster.v1.";

/// How calls end, by gRPC's codes.
pub const OUTCOMES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

/// A method of these sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method(usize);

impl Method {
    /// The method that a request is for.
    pub fn of(request: &Request) -> Self {
        if let Some(name) = request.uri().path().strip_prefix(GRPC_PREFIX) {
            return GRPC.binary_search(&name).map_or(Self::OTHER, Self);
        }
        let pattern = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str);
        let found = REST.binary_search(&(pattern, request.method().as_str()));
        found.map_or(Self::OTHER, |at| Self(GRPC.len() + at))
    }

    const OTHER: Self = Self(METHODS - 1);

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..METHODS).map(Self)
    }

    /// A number below [`METHODS`].
    pub fn number(self) -> usize {
        self.0
    }

    /// Whether it changes something or shows what is secret: who serves it tells of it, with what it was about.
    pub fn is_told_of(self) -> bool {
        match GRPC.get(self.0) {
            Some(name) => match name.split_once('/') {
                Some(("Control", method)) => !matches!(method, "Cluster" | "List" | "Logs" | "View" | "Watch"),
                Some(("Admission", _)) => true,
                // What agents and managers do among themselves is in the tables, and in the log.
                _ => false,
            },
            None => matches!(REST[self.0 - GRPC.len()].1, "PUT" | "POST" | "DELETE"),
        }
    }

    /// Whether users call it, and not only agents or managers.
    pub fn is_for_users(self) -> bool {
        GRPC.get(self.0).is_none_or(|name| name.starts_with("Control/") || name.starts_with("Admission/"))
    }

    /// Whether its answer may go on for long.
    pub fn is_stream(self) -> bool {
        match GRPC.get(self.0) {
            Some(name) => matches!(*name, "Control/Watch" | "Control/Logs" | "Control/Relay" | "Control/Backup"),
            None => REST[self.0 - GRPC.len()].0 == "/v1/watch",
        }
    }

    /// As it is told of.
    pub fn name(self) -> String {
        match GRPC.get(self.0) {
            Some(name) => (*name).to_owned(),
            None => match REST[self.0 - GRPC.len()] {
                ("other", "other") => "other".to_owned(),
                (pattern, verb) => format!("{verb} {pattern}"),
            },
        }
    }
}

/// How a call ended, or began if it is a stream, as a place in [`OUTCOMES`].
pub fn outcome<T>(response: &Response<T>) -> usize {
    code_place(match response.headers().get("grpc-status") {
        Some(code) => Code::from_bytes(code.as_bytes()),
        None => from_http(response.status()),
    })
}

/// The place of a code in [`OUTCOMES`].
pub fn code_place(code: Code) -> usize {
    // There are 17 of them.
    usize::try_from(code as i32).unwrap_or_default().min(OUTCOMES.len() - 1)
}

/// Whether an outcome is a refusal of who called.
pub fn is_refusal(outcome: usize) -> bool {
    [Code::Unauthenticated, Code::PermissionDenied].map(code_place).contains(&outcome)
}

fn from_http(status: StatusCode) -> Code {
    match status {
        _ if status.is_success() => Code::Ok,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Code::Unimplemented,
        StatusCode::CONFLICT => Code::Aborted,
        StatusCode::GONE => Code::OutOfRange,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        _ if status.is_client_error() => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn request(verb: &str, path: &str) -> Request {
        Request::builder().method(verb).uri(path).body(axum::body::Body::empty()).unwrap()
    }

    #[test]
    fn every_method_that_is_served_is_known() {
        let protos = [
            ("Admission", include_str!("../../../api/proto/rcluster/v1/admission.proto")),
            ("Control", include_str!("../../../api/proto/rcluster/v1/control.proto")),
            ("Dispatcher", include_str!("../../../api/proto/rcluster/v1/dispatcher.proto")),
            ("Raft", include_str!("../../../api/proto/rcluster/v1/raft.proto")),
        ];
        let mut served = BTreeSet::new();
        for (service, proto) in protos {
            let block = proto.split(&format!("service {service} {{")).nth(1).unwrap().split("\n}").next().unwrap();
            let names = block.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
            served.extend(names.map(|name| format!("{service}/{name}")));
        }
        assert_eq!(served, GRPC.iter().map(|name| (*name).to_owned()).collect());
        assert!(GRPC.is_sorted() && REST.is_sorted());
        let routed = include_str!("rest.rs").split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        let known: BTreeSet<&str> = REST.iter().map(|(pattern, _)| *pattern).filter(|pattern| *pattern != "other").collect();
        assert_eq!(routed.collect::<BTreeSet<_>>(), known);
    }

    #[test]
    fn what_is_not_there_makes_no_figure_of_its_own() {
        let name = |verb: &str, path: &str| Method::of(&request(verb, path)).name();
        assert_eq!(name("POST", "/rcluster.v1.Control/Apply"), "Control/Apply");
        assert_eq!(name("POST", "/rcluster.v1.Control/Nothing"), "other");
        assert_eq!(name("BREW", "/v1/coffee"), "other");
        assert_eq!(Method::all().map(Method::name).collect::<BTreeSet<_>>().len(), METHODS);
    }

    #[test]
    fn changes_are_told_of_and_looks_are_not() {
        let told = |verb: &str, path: &str| Method::of(&request(verb, path)).is_told_of();
        for method in ["Control/Apply", "Control/Relay", "Control/CreateUser", "Control/Backup", "Admission/Join"] {
            assert!(told("POST", &format!("{GRPC_PREFIX}{method}")), "{method}");
        }
        for method in ["Control/List", "Control/View", "Control/Watch", "Dispatcher/Session", "Raft/Send", "Control/Nothing"] {
            assert!(!told("POST", &format!("{GRPC_PREFIX}{method}")), "{method}");
        }
    }

    #[test]
    fn rest_ends_as_grpc_does() {
        let word = |status: u16| OUTCOMES[outcome(&Response::builder().status(status).body(()).unwrap())];
        assert_eq!(
            [200, 401, 403, 404, 409, 422, 429, 503].map(word),
            ["ok", "unauthenticated", "permission_denied", "not_found", "aborted", "invalid_argument", "resource_exhausted", "unavailable"]
        );
        let refused = tonic::Status::permission_denied("no").into_http::<()>();
        assert_eq!(OUTCOMES[outcome(&refused)], "permission_denied");
    }
}
