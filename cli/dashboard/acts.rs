//! What can be done, in the name of the viewer: the scheduler decides who may.

use std::sync::Arc;

use aquifer_proto::v1;
use axum::extract::{Extension, Path};
use axum::http::StatusCode;
use axum::response::IntoResponse;

use super::answer::{Answered, Refusal};
use super::door::Viewer;
use super::pages::job_of;
use crate::client::{Client, Patience};

type Of = Extension<Arc<Viewer>>;

/// `aquifer cancel`.
pub async fn cancel(Extension(viewer): Of, Path(job): Path<String>) -> Answered {
    let request = v1::CancelRequest { job: job_of(&job)?.0, whole_array: false };
    let pool = viewer.session(false).pool;
    let done = pool.call(Patience::Short, async |mut client: Client| client.cancel(request).await).await;
    done.map_err(|failure| Refusal::of(failure, pool.heard().refusal))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `aquifer cordon`, `drain` and `uncordon`.
pub async fn node(Extension(viewer): Of, Path((name, act)): Path<(String, String)>) -> Answered {
    let request = v1::NodeRequest { name, device: None };
    let pool = viewer.session(false).pool;
    let done = pool.call(Patience::Short, async |mut client: Client| match &act[..] {
        "cordon" => client.cordon(request.clone()).await,
        "drain" => client.drain(request.clone()).await,
        "uncordon" => client.uncordon(request.clone()).await,
        _ => Err(tonic::Status::invalid_argument(format!(
            "a node cannot be told to {act:?}: expected cordon, drain or uncordon"
        ))),
    });
    done.await.map_err(|failure| Refusal::of(failure, pool.heard().refusal))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
