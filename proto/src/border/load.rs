//! What a replica of a service has to do, and has done.

use aquifer_core::ReplicaLoad;
use aquifer_core::serving::Work;

use crate::v1;

/// What a replica tells; whatever it says is possible.
pub(super) fn load(wire: v1::ReplicaLoad) -> ReplicaLoad {
    let v1::ReplicaLoad { running, waiting, ttft_ms, tpot_ms, idle_ms, work: told } = wire;
    let v1::ReplicaWork { requests, prompt_tokens, prompt_us, said_tokens, steps, steps_us } =
        told.unwrap_or_default();
    let work = Work { requests, prompt_tokens, prompt_us, said_tokens, steps, steps_us };
    ReplicaLoad { running, waiting, ttft_ms, tpot_ms, idle_ms, work }
}
