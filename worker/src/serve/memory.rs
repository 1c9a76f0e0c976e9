//! How much memory keys and values get.

use super::engine::MAX_RUNNING;
use crate::args::UsageError;
use crate::kernels::BLOCK;
use crate::model::ModelConfig;

/// Blocks of keys and values, of elements of so many bytes: as many as fit in `mib`, or else in `default_bytes`, but then no
/// more than [`MAX_RUNNING`] requests of the whole window take. On processors their memory is used as they are.
///
/// # Errors
/// Where not one block fits in `mib`.
pub fn blocks(
    config: &ModelConfig,
    mib: Option<u64>,
    (default_bytes, element_bytes): (u64, usize),
) -> Result<usize, UsageError> {
    let block = (config.block_elements() * element_bytes) as u64;
    let Some(mib) = mib else {
        let most = (MAX_RUNNING * config.window().div_ceil(BLOCK)) as u64;
        return Ok((default_bytes / block).clamp(1, most) as usize);
    };
    match (mib << 20) / block {
        0 => {
            let allowed = format!("a block of {BLOCK} positions takes {} MiB", block.div_ceil(1 << 20));
            Err(UsageError::new("--kv-memory", mib, allowed))
        }
        blocks => Ok(blocks.min(u32::MAX.into()) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_in_their_memory_and_less_than_one_is_refused() {
        // 4 layers, 2 key heads of 32: 512 floats of keys and values a position and layer, 32 KiB a block.
        let config = ModelConfig::preset("tiny").unwrap();
        assert_eq!(blocks(&config, Some(1), (0, 4)), Ok(32));
        assert_eq!(blocks(&config, Some(1), (0, 2)), Ok(64));
        assert_eq!(blocks(&config, None, (1 << 20, 4)), Ok(32));
        assert_eq!([0, 1 << 40].map(|bytes| blocks(&config, None, (bytes, 4)).unwrap()), [1, 64 * 64]);
        let large = ModelConfig { head_dim: 1024, num_hidden_layers: 32, ..config };
        let refused = blocks(&large, Some(1), (0, 4)).unwrap_err().to_string();
        assert_eq!(refused, "--kv-memory is 1; a block of 16 positions takes 8 MiB");
    }
}
