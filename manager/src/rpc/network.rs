//! What users ask of the cluster's network: what is wanted of a node, and what subnets are chosen from.

use std::sync::Arc;

use ipnet::Ipv4Net;
use prost::Message as _;
use rcluster_api::cluster::UserRole;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::object::Node;
use rcluster_api::wire::v1;
use tonic::{Request, Status};

use super::relay::find_node;
use super::route::Router;
use super::{auth, once};
use crate::core::allocate;
use crate::core::control::Request as Asked;
use crate::core::dispatch::netview::Networks;
use crate::core::state::State;
use crate::drive::Term;

/// What is wanted of a node by these tables, in a term.
pub fn of_node(state: &State, node: &Node, term: u64) -> v1::NetView {
    Networks::new(state).view(&node.id, term)
}

/// What is wanted of a node. Any manager may answer.
pub async fn view(router: &Router, request: Request<v1::ViewRequest>) -> Result<v1::NetView, Status> {
    auth::admit(&request)?;
    let state = router.shown(&request, UserRole::ReadOnly, "seeing what is wanted of a node").await?;
    let node = find_node(&state, &request.get_ref().node)?;
    Ok(of_node(&state, &node, router.store.status().term))
}

/// Adds pools, if any are asked for, and tells of all.
pub async fn update_pools(
    router: &Router,
    term: Arc<Term>,
    request: Request<v1::UpdatePoolsRequest>,
) -> Result<v1::UpdatePoolsResponse, Status> {
    if request.get_ref().add.is_empty() {
        let state = router.shown(&request, UserRole::ReadOnly, "seeing the address pools").await?;
        return Ok(v1::UpdatePoolsResponse { revision: state.revision(), pools: pools(&state) });
    }
    router.permit(&request, UserRole::Admin, "adding an address pool")?;
    let key = once::key(&request, &router.store.state(), "UpdatePools", v1::UpdatePoolsRequest::encode_to_vec)?;
    let more = request.into_inner().add.iter().enumerate().map(parsed).collect::<Result<_, _>>()?;
    let (revision, _) = term.request(once::with(key, Asked::AddPools(more))).await?;
    Ok(v1::UpdatePoolsResponse { revision, pools: pools(&router.store.state()) })
}

fn parsed((index, pool): (usize, &v1::AddressPool)) -> Result<(Ipv4Net, u8), ApiError> {
    let refused = |field: &str, message: String| ApiError::new(ErrorCode::Invalid, message).field(format!("add[{index}].{field}"));
    let v1::AddressPool { cidr, prefix, cursor: _ } = pool;
    let cidr = cidr.parse().map_err(|_| refused("cidr", format!("{cidr:?} is not an IPv4 range such as 10.200.0.0/16")))?;
    let prefix = u8::try_from(*prefix).map_err(|_| refused("prefix", format!("{prefix} is no length of a prefix")))?;
    Ok((cidr, prefix))
}

fn pools(state: &State) -> Vec<v1::PoolStatus> {
    let status = |(pool, free): (rcluster_api::network::AddressPool, u32)| v1::PoolStatus {
        cidr: pool.cidr.to_string(),
        prefix: pool.prefix.into(),
        subnets: allocate::subnet_count(&pool),
        free,
    };
    allocate::pools_free(state).into_iter().map(status).collect()
}
