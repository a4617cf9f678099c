//! `cluster`, `user` and what `node` does with managers: who belongs to the cluster, and who may use it.

use rcluster_api::client::{idempotency_key, keyed};
use rcluster_api::cluster::{ManagerRole, UserRole};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::object::{Kind, Object};
use rcluster_api::tls::{Credentials, SigningRequest};
use rcluster_api::wire::v1;
use serde::Serialize;

use super::{backup, change, show, unlock};
use crate::args::{ClusterCommand, JoinPart, Switch, UserCommand, UserCreate, Wait};
use crate::config::{self, Context};
use crate::error::CliError;
use crate::output::{self, Out};
use crate::session::Session;

/// `cluster …`.
pub async fn run(mut session: Session, out: Out, command: ClusterCommand) -> Result<(), CliError> {
    match command {
        ClusterCommand::Status => show::cluster(session, out).await,
        ClusterCommand::Token { part, rotate } => token(session, out, part, rotate).await,
        ClusterCommand::RotateCa { drop_old: true } => {
            // Who ends the trust in the old authority must not be the first that is refused.
            session.renew_now().await?;
            session.once(|mut client| async move { Ok(client.drop_authorities(v1::DropAuthoritiesRequest {}).await?) }).await?;
            output::talk("only the authority that issues is trusted from now on")?;
            output::talk("a host or user that still shows a certificate of an older one is refused, and has to join again")
        }
        ClusterCommand::RotateCa { drop_old: false } => {
            let answer =
                session.once(|mut client| async move { Ok(client.rotate_authority(v1::RotateAuthorityRequest {}).await?) }).await?;
            let digest = answer.into_inner().digest;
            output::talk("a new certificate authority issues from now on; managers and agents renew their certificates by themselves")?;
            output::talk(
                "join tokens that were printed before still work; certificates of users are renewed at half of their life, as they are used",
            )?;
            output::data(&format!("{digest}\n"))
        }
        ClusterCommand::Backup(args) if args.verify => backup::verify(out, &args),
        ClusterCommand::Backup(args) => backup::write(session, out, &args).await,
        ClusterCommand::Init(_) | ClusterCommand::Join(_) | ClusterCommand::Restore(_) | ClusterCommand::Recover(_) => {
            Err(CliError::usage("this command talks to no manager", ""))
        }
        ClusterCommand::Autolock { switch: Switch::On } => unlock::autolock(session, out, v1::AutolockAction::On).await,
        ClusterCommand::Autolock { switch: Switch::Off } => unlock::autolock(session, out, v1::AutolockAction::Off).await,
        ClusterCommand::UnlockKey { rotate: false } => unlock::autolock(session, out, v1::AutolockAction::Show).await,
        ClusterCommand::UnlockKey { rotate: true } => unlock::autolock(session, out, v1::AutolockAction::Rotate).await,
        ClusterCommand::Unlock { key_file } => unlock::unlock(session, key_file.as_deref()).await,
        ClusterCommand::Leave { manager, wait } => change::rm(session, Kind::Manager, &[manager], wait).await,
    }
}

/// What `cluster token -o json` prints.
#[derive(Debug, Serialize)]
struct TokenJson<'a> {
    token: &'a str,
    managers: &'a [String],
}

async fn token(mut session: Session, out: Out, part: JoinPart, rotate: bool) -> Result<(), CliError> {
    let manager = part == JoinPart::Manager;
    let request = v1::JoinTokenRequest { manager, rotate };
    // Rotated twice, the first that was printed would be void.
    let answer = session.once(|mut client| async move { Ok(client.join_token(request).await?) }).await?.into_inner();
    let v1::JoinTokenResponse { token, managers } = answer;
    if !out.is_table() {
        return out.value(&TokenJson { token: &token, managers: &managers });
    }
    if rotate {
        output::talk("the token before lets nobody join any more; who has joined stays")?;
    }
    let command = if manager {
        format!("rcluster-manager run --join {} --name NAME --state-dir DIR --listen HOST:PORT", managers.join(","))
    } else {
        format!("rcluster-agent run --managers {} --name NAME …", managers.join(","))
    };
    output::talk(&format!("to join, put it into RCLUSTER_JOIN_TOKEN or a file for --token-file, and start {command}"))?;
    output::data(&format!("{token}\n"))
}

/// `node promote|demote MANAGER`.
pub async fn set_role(mut session: Session, manager: &str, role: ManagerRole) -> Result<(), CliError> {
    let request = v1::UpdateManagerRequest { manager: manager.to_owned(), role: v1::ManagerRole::from(role).into(), addr: String::new() };
    update(&mut session, request).await?;
    output::talk(&match role {
        ManagerRole::Voter => format!("manager {manager} votes as soon as it has caught up"),
        ManagerRole::Standby => format!("manager {manager} votes no more, and keeps a copy"),
        ManagerRole::Leaving => format!("manager {manager} leaves"),
    })
}

/// `node update MANAGER --addr HOST:PORT`.
pub async fn set_addr(mut session: Session, manager: &str, addr: &str) -> Result<(), CliError> {
    let request =
        v1::UpdateManagerRequest { manager: manager.to_owned(), role: v1::ManagerRole::Unspecified.into(), addr: addr.to_owned() };
    update(&mut session, request).await?;
    output::talk(&format!("manager {manager} is at {addr} for all others from now on"))
}

async fn update(session: &mut Session, request: v1::UpdateManagerRequest) -> Result<(), CliError> {
    let key = idempotency_key();
    let call = |mut client: crate::session::Client| {
        let request = keyed(&key, request.clone());
        async move { client.update_manager(request).await }
    };
    session.call(call).await.map(|_| ())
}

/// Whether `name` is a manager's.
async fn is_manager(session: &mut Session, name: &str) -> Result<bool, CliError> {
    let cluster = session.cluster().await?;
    Ok(cluster.managers.iter().any(|manager| manager.name == name || manager.object_id == name))
}

/// `node rm NAME…`: nodes together, a manager alone.
pub async fn remove(mut session: Session, names: &[String], wait: Wait) -> Result<(), CliError> {
    let [name] = names else { return change::rm(session, Kind::Node, names, wait).await };
    if !is_manager(&mut session, name).await? {
        return change::rm(session, Kind::Node, names, wait).await;
    }
    let nodes = session.list(Kind::Node, "", "").await?;
    if nodes.iter().any(|object| matches!(object, Object::Node(node) if node.name() == name || node.id.as_str() == name)) {
        return Err(CliError::refused(
            format!("a manager and a node are called {name}"),
            format!("say which: rclusterctl cluster leave {name}, or rclusterctl rm node {name}"),
        ));
    }
    change::rm(session, Kind::Manager, names, wait).await
}

/// `user …`.
pub async fn user(session: Session, out: Out, command: UserCommand) -> Result<(), CliError> {
    match command {
        UserCommand::Ls => show::get(session, out, Kind::User, None, false).await,
        UserCommand::Rm { users, wait } => change::rm(session, Kind::User, &users, wait).await,
        UserCommand::Create(args) => create(session, out, args).await,
    }
}

/// What `user create -o json` prints of a token.
#[derive(Debug, Serialize)]
struct UserToken<'a> {
    id: &'a str,
    name: &'a str,
    role: UserRole,
    token: &'a str,
}

async fn create(mut session: Session, out: Out, args: UserCreate) -> Result<(), CliError> {
    let UserCreate { name, role, expires, access } = args;
    let internal = |error: rcluster_api::tls::TlsError| CliError::refused(error.to_string(), "");
    let signing = if access.is_some() { Some(SigningRequest::new().map_err(internal)?) } else { None };
    let request = v1::CreateUserRequest {
        name: name.clone(),
        role: v1::UserRole::from(role).into(),
        ttl_ms: expires.map_or(0, |expires| expires.0),
        signing_request: signing.as_ref().map(|signing| signing.request.clone()).unwrap_or_default(),
    };
    // Repeated, it would meet itself.
    let call = |mut client: crate::session::Client| {
        let request = request.clone();
        async move { Ok(client.create_user(request).await?) }
    };
    let v1::CreateUserResponse { id, token, credentials } = session.once(call).await?.into_inner();
    match (access, signing) {
        (Some(path), Some(signing)) => {
            let wire = credentials.ok_or_else(|| ApiError::new(ErrorCode::Internal, "the managers gave no certificate"))?;
            let managers = session.cluster().await?.managers.into_iter().map(|manager| manager.addr).collect();
            let context = Context { managers, credentials: Some(Credentials::new(wire, signing.key)), ..Context::default() };
            config::write_access(&path, &context)?;
            let path = path.display();
            output::talk(&format!("user {name} may come in with {path}: rclusterctl context create NAME --from {path}"))
        }
        _ if out.is_table() => {
            output::talk(&format!("user {name}, role {}: a token for REST, told this once (Authorization: Bearer …)", role.as_str()))?;
            output::data(&format!("{token}\n"))
        }
        _ => out.value(&UserToken { id: &id, name: &name, role, token: &token }),
    }
}
