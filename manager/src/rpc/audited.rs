//! Control with its audit events: what changes something, and what shows what is secret, is told of when it was answered.

use rcluster_api::wire::convert;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_server::Control;
use tonic::{Request, Response, Status, Streaming};

use super::audit::Call;
use super::control::ControlService;
use super::route::Router;

/// Objects that an event names.
const NAMES_MAX: usize = 20;

/// Control calls, told of.
#[derive(Debug, Clone)]
pub struct AuditedControl {
    pub(super) router: Router,
    control: ControlService,
}

impl AuditedControl {
    /// The calls of `router`'s cluster.
    pub fn new(router: Router) -> Self {
        Self { control: ControlService::new(router.clone()), router }
    }

    fn begins<T>(&self, request: &Request<T>, method: &'static str, what: impl FnOnce(&T) -> String) -> Call {
        Call::begin(&self.router, request, method, what)
    }
}

fn ended<T>(call: Call, outcome: Result<Response<T>, Status>) -> Result<Response<T>, Status> {
    call.end(&outcome);
    outcome
}

fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let listed = names.take(NAMES_MAX).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{listed} and {more} more") } else { listed }
}

fn spec(spec: &v1::Spec) -> String {
    match &spec.kind {
        Some(v1::spec::Kind::Service(spec)) => format!("service {}", spec.name),
        Some(v1::spec::Kind::Network(spec)) => format!("network {}", spec.name),
        Some(v1::spec::Kind::Data(spec)) => match v1::DataKind::try_from(spec.kind) {
            Ok(v1::DataKind::Secret) => format!("secret {}", spec.name),
            Ok(v1::DataKind::Config | v1::DataKind::Unspecified) | Err(_) => format!("config {}", spec.name),
        },
        None => "nothing".to_owned(),
    }
}

fn reference(v1::Ref { kind, name }: &v1::Ref) -> String {
    convert::kind(*kind).map_or_else(|_| name.clone(), |kind| format!("{} {name}", kind.as_str()))
}

fn node(message: &v1::UpdateNodeRequest) -> String {
    let v1::UpdateNodeRequest { node, availability, labels_set, labels_removed } = message;
    let availability = convert::availability(*availability).ok().flatten().map_or("", |availability| availability.as_str());
    let labels = if labels_set.is_empty() && labels_removed.is_empty() { "" } else { "labels" };
    format!("node {node}: {}", [availability, labels].join(" ").trim())
}

fn manager(message: &v1::UpdateManagerRequest) -> String {
    let v1::UpdateManagerRequest { manager, role, addr } = message;
    let role = convert::manager_role(*role).ok().flatten().map_or("", |role| role.as_str());
    format!("manager {manager}: {}", [role, addr].join(" ").trim())
}

fn user(message: &v1::CreateUserRequest) -> String {
    let v1::CreateUserRequest { name, role, ttl_ms: _, signing_request } = message;
    let role = convert::user_role(*role).map_or("no role", |role| role.as_str());
    format!("user {name}: {role}, by {}", if signing_request.is_empty() { "token" } else { "certificate" })
}

fn join_token(message: &v1::JoinTokenRequest) -> String {
    let v1::JoinTokenRequest { manager, rotate } = *message;
    format!("token for {}s: {}", if manager { "manager" } else { "agent" }, if rotate { "rotated" } else { "shown" })
}

fn autolock(message: &v1::AutolockRequest) -> String {
    match v1::AutolockAction::try_from(message.action).unwrap_or_default() {
        v1::AutolockAction::Unspecified => "nothing",
        v1::AutolockAction::On => "on",
        v1::AutolockAction::Off => "off",
        v1::AutolockAction::Rotate => "unlock key rotated",
        v1::AutolockAction::Show => "unlock key shown",
    }
    .to_owned()
}

fn pools(message: &v1::UpdatePoolsRequest) -> String {
    listed(message.add.iter().map(|pool| format!("pool {}", pool.cidr)))
}

#[tonic::async_trait]
impl Control for AuditedControl {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let call = self.begins(&request, "Control/Apply", |message| listed(message.specs.iter().map(spec)));
        ended(call, self.control.apply(request).await)
    }

    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Result<Response<v1::RemoveResponse>, Status> {
        let call = self.begins(&request, "Control/Remove", |message| listed(message.refs.iter().map(reference)));
        ended(call, self.control.remove(request).await)
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Result<Response<v1::ScaleResponse>, Status> {
        let what = |message: &v1::ScaleRequest| format!("service {}: {} replicas", message.service, message.replicas);
        let call = self.begins(&request, "Control/Scale", what);
        ended(call, self.control.scale(request).await)
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        self.control.list(request).await
    }

    type WatchStream = <ControlService as Control>::WatchStream;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.control.watch(request).await
    }

    async fn update_node(&self, request: Request<v1::UpdateNodeRequest>) -> Result<Response<v1::UpdateNodeResponse>, Status> {
        let call = self.begins(&request, "Control/UpdateNode", node);
        ended(call, self.control.update_node(request).await)
    }

    type LogsStream = <ControlService as Control>::LogsStream;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        self.control.logs(request).await
    }

    type RelayStream = <ControlService as Control>::RelayStream;

    /// Told of where its first message is read, here as at the leader: what it is for stands there.
    async fn relay(&self, request: Request<Streaming<v1::RelayInput>>) -> Result<Response<Self::RelayStream>, Status> {
        self.control.relay(request).await
    }

    async fn cluster(&self, request: Request<v1::ClusterRequest>) -> Result<Response<v1::ClusterResponse>, Status> {
        self.control.cluster(request).await
    }

    async fn update_manager(&self, request: Request<v1::UpdateManagerRequest>) -> Result<Response<v1::UpdateManagerResponse>, Status> {
        let call = self.begins(&request, "Control/UpdateManager", manager);
        ended(call, self.control.update_manager(request).await)
    }

    async fn join_token(&self, request: Request<v1::JoinTokenRequest>) -> Result<Response<v1::JoinTokenResponse>, Status> {
        let call = self.begins(&request, "Control/JoinToken", join_token);
        ended(call, self.control.join_token(request).await)
    }

    async fn create_user(&self, request: Request<v1::CreateUserRequest>) -> Result<Response<v1::CreateUserResponse>, Status> {
        let call = self.begins(&request, "Control/CreateUser", user);
        ended(call, self.control.create_user(request).await)
    }

    async fn rotate_authority(
        &self,
        request: Request<v1::RotateAuthorityRequest>,
    ) -> Result<Response<v1::RotateAuthorityResponse>, Status> {
        let call = self.begins(&request, "Control/RotateAuthority", |_| String::new());
        ended(call, self.control.rotate_authority(request).await)
    }

    async fn drop_authorities(
        &self,
        request: Request<v1::DropAuthoritiesRequest>,
    ) -> Result<Response<v1::DropAuthoritiesResponse>, Status> {
        let call = self.begins(&request, "Control/DropAuthorities", |_| String::new());
        ended(call, self.control.drop_authorities(request).await)
    }

    type BackupStream = <ControlService as Control>::BackupStream;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let call = self.begins(&request, "Control/Backup", |_| String::new());
        ended(call, self.control.backup(request).await)
    }

    async fn autolock(&self, request: Request<v1::AutolockRequest>) -> Result<Response<v1::AutolockResponse>, Status> {
        let call = self.begins(&request, "Control/Autolock", autolock);
        ended(call, self.control.autolock(request).await)
    }

    async fn view(&self, request: Request<v1::ViewRequest>) -> Result<Response<v1::NetView>, Status> {
        self.control.view(request).await
    }

    /// A look at the pools is told of when it was refused.
    async fn update_pools(&self, request: Request<v1::UpdatePoolsRequest>) -> Result<Response<v1::UpdatePoolsResponse>, Status> {
        let looks = request.get_ref().add.is_empty();
        let call = self.begins(&request, "Control/UpdatePools", pools);
        let outcome = self.control.update_pools(request).await;
        if looks && outcome.is_ok() {
            call.end_untold();
            return outcome;
        }
        ended(call, outcome)
    }
}
