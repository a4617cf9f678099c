//! `secret create` and `config create`.

use rcluster_api::data::{DataKind, DataSpec, Payload};
use rcluster_api::validate;
use rcluster_api::wire::v1;

use super::change;
use crate::args::DataCreate;
use crate::config;
use crate::error::CliError;
use crate::output::Out;
use crate::session::Session;

/// `secret|config create NAME FILE|-`.
pub async fn create(mut session: Session, out: Out, kind: DataKind, args: DataCreate) -> Result<(), CliError> {
    let DataCreate { name, file, label, replace } = args;
    let word = kind.as_str();
    let bytes = config::data(&file)?;
    let labels = label.into_iter().collect();
    let spec = DataSpec { kind, name: name.clone(), stack: String::new(), labels, data: Some(Payload(bytes)) };
    validate::check_data(&spec)?;
    let all = session.list(kind.object_kind(), "", "").await?;
    let there = all.iter().find_map(|object| match object {
        rcluster_api::object::Object::Data(data) if data.spec.name == name => Some(data),
        _ => None,
    });
    let stack = match there {
        Some(_) if !replace => {
            let hint = format!(
                "--replace gives it these bytes and replaces the tasks of the services that use it; rclusterctl rm {word} {name} removes it"
            );
            return Err(CliError::refused(format!("{word} {name} exists: nothing was changed"), hint));
        }
        Some(data) => data.spec.stack.clone(),
        None => String::new(),
    };
    let spec = v1::spec::Kind::Data(DataSpec { stack, ..spec }.into());
    change::put(&mut session, out, kind.object_kind(), &name, spec).await
}
