//! Secrets and configs.

use super::{WireError, meta, missing, read_enum, wire_meta};
use crate::container::FileMode;
use crate::data::{Data, DataKind, DataRef, DataSpec, Payload};
use crate::wire::v1;

impl From<DataKind> for v1::DataKind {
    fn from(kind: DataKind) -> Self {
        match kind {
            DataKind::Secret => Self::Secret,
            DataKind::Config => Self::Config,
        }
    }
}

impl TryFrom<v1::DataKind> for DataKind {
    type Error = WireError;

    fn try_from(kind: v1::DataKind) -> Result<Self, WireError> {
        match kind {
            v1::DataKind::Unspecified => Err(missing("data kind")),
            v1::DataKind::Secret => Ok(Self::Secret),
            v1::DataKind::Config => Ok(Self::Config),
        }
    }
}

/// A kind of data as it stands in a message.
pub fn data_kind(number: i32) -> Result<DataKind, WireError> {
    read_enum::<v1::DataKind, _>(number, "data kind")
}

impl From<DataRef> for v1::DataRef {
    fn from(data: DataRef) -> Self {
        let DataRef { source, target, uid, gid, mode: FileMode(mode) } = data;
        Self { source, target, uid, gid, mode }
    }
}

impl From<v1::DataRef> for DataRef {
    fn from(wire: v1::DataRef) -> Self {
        let v1::DataRef { source, target, uid, gid, mode } = wire;
        Self { source, target, uid, gid, mode: if mode == 0 { Self::MODE } else { FileMode(mode) } }
    }
}

impl From<Payload> for v1::Payload {
    fn from(Payload(bytes): Payload) -> Self {
        Self { bytes }
    }
}

impl From<v1::Payload> for Payload {
    fn from(v1::Payload { bytes }: v1::Payload) -> Self {
        Self(bytes)
    }
}

impl From<DataSpec> for v1::DataSpec {
    fn from(spec: DataSpec) -> Self {
        let DataSpec { kind, name, stack, labels, data } = spec;
        Self { kind: v1::DataKind::from(kind).into(), name, stack, labels, payload: data.map(Into::into) }
    }
}

impl TryFrom<v1::DataSpec> for DataSpec {
    type Error = WireError;

    fn try_from(wire: v1::DataSpec) -> Result<Self, WireError> {
        let v1::DataSpec { kind, name, stack, labels, payload } = wire;
        Ok(Self { kind: data_kind(kind)?, name, stack, labels, data: payload.map(Into::into) })
    }
}

impl From<Data> for v1::Data {
    fn from(data: Data) -> Self {
        let Data { id, stamp, spec, digest, size } = data;
        Self { meta: wire_meta(id, stamp), spec: Some(spec.into()), digest, size }
    }
}

impl TryFrom<v1::Data> for Data {
    type Error = WireError;

    fn try_from(wire: v1::Data) -> Result<Self, WireError> {
        let v1::Data { meta: wire_meta, spec, digest, size } = wire;
        let (id, stamp) = meta(wire_meta)?;
        Ok(Self { id, stamp, spec: spec.ok_or(missing("spec"))?.try_into()?, digest, size })
    }
}
