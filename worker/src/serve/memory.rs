//! How much memory keys and values get.

use super::engine::MAX_RUNNING;
use crate::args::UsageError;
use crate::kernels::BLOCK;
use crate::model::ModelConfig;

/// Blocks of keys and values: as many as fit in `mib`, or by default in a quarter of the memory that this process may
/// use, but no more than [`MAX_RUNNING`] requests of the whole window take. Their memory is used as they are.
///
/// # Errors
/// Where not one block fits in `mib`.
pub fn blocks(config: &ModelConfig, mib: Option<u64>) -> Result<usize, UsageError> {
    let block = (config.block_elements() * size_of::<f32>()) as u64;
    let Some(mib) = mib else {
        let most = (MAX_RUNNING * config.window().div_ceil(BLOCK)) as u64;
        return Ok((usable_bytes() / 4 / block).clamp(1, most) as usize);
    };
    match (mib << 20) / block {
        0 => {
            let allowed = format!("a block of {BLOCK} positions takes {} MiB", block.div_ceil(1 << 20));
            Err(UsageError::new("--kv-memory", mib, allowed))
        }
        blocks => Ok(blocks.min(u32::MAX.into()) as usize),
    }
}

/// The memory of this machine or, if that is less, what the control group of this process may use.
fn usable_bytes() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.to_string();
        Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
    });
    // A group is bound by those around it as well.
    let own = read("/proc/self/cgroup")
        .and_then(|text| Some(text.lines().find_map(|line| line.strip_prefix("0::"))?.to_string()));
    let own = own.unwrap_or_else(|| "/".into());
    let groups =
        std::path::Path::new(&own).ancestors().map(|group| format!("/sys/fs/cgroup{}", group.display()));
    let limits = groups.filter_map(|group| read(&format!("{group}/memory.max"))?.trim().parse::<u64>().ok());
    limits.chain(machine).min().unwrap_or(4 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_in_their_memory_and_less_than_one_is_refused() {
        // 4 layers, 2 key heads of 32: 512 floats of keys and values a position and layer, 32 KiB a block.
        let config = ModelConfig::preset("tiny").unwrap();
        assert_eq!(blocks(&config, Some(1)), Ok(32));
        assert!((1..=64 * 64).contains(&blocks(&config, None).unwrap()));
        let large = ModelConfig { head_dim: 1024, num_hidden_layers: 32, ..config };
        let refused = blocks(&large, Some(1)).unwrap_err().to_string();
        assert_eq!(refused, "--kv-memory is 1; a block of 16 positions takes 8 MiB");
    }
}
