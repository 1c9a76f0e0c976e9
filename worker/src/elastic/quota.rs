//! How many shards of a step each member gets.

/// Numbers of shards that are all computed the soonest: each next one goes to whom it ends first with. They sum up to
/// `shards`; of equals the first gets more. Takes `shards * paces` steps.
///
/// * `paces`: time of a shard, of each member, at least one; `None` where unknown: as the mean of the known ones.
pub fn quotas(shards: usize, paces: &[Option<f64>]) -> Vec<usize> {
    let known: Vec<f64> = paces.iter().flatten().copied().collect();
    let mean = if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
    let paces: Vec<f64> = paces.iter().map(|pace| pace.unwrap_or(mean).max(1e-9)).collect();
    let mut quotas = vec![0; paces.len()];
    for _ in 0..shards {
        let end = |at: &usize| (quotas[*at] + 1) as f64 * paces[*at];
        let next = (0..paces.len()).min_by(|a, b| end(a).total_cmp(&end(b))).expect("a member");
        quotas[next] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_go_to_whom_they_end_first_with() {
        assert_eq!(quotas(16, &[Some(1.0), Some(1.0), Some(3.0), None]), [6, 6, 1, 3]);
        assert_eq!(quotas(10, &[Some(1.0), Some(1.0), Some(1.0), Some(3.0)]), [3, 3, 3, 1]);
        assert_eq!(quotas(4, &[Some(1.0), Some(9.0)]), [4, 0]);
        assert_eq!(quotas(3, &[None, None]), [2, 1]);
        assert_eq!(quotas(7, &[Some(0.0)]), [7]);
    }
}
