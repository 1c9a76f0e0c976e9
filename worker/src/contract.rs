//! The environment that a worker is started with. By hand, without any of it, a worker is a group of one.

use std::path::PathBuf;

/// Who this worker is and what it was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Contract {
    /// `RANK`: this worker's number in its group, from 0; where members come and go, any number.
    pub rank: usize,
    /// `WORLD_SIZE`: workers in the group.
    pub world_size: usize,
    /// `LOCAL_RANK`: this worker's number on its node.
    pub local_rank: usize,
    /// `LOCAL_WORLD_SIZE`: the group's workers on this node.
    pub local_world_size: usize,
    /// `MASTER_ADDR`: host of rank 0.
    pub master_addr: String,
    /// `MASTER_PORT`: where rank 0 listens for the others.
    pub master_port: u16,
    /// `AQUIFER_RUN_DIR`: where `status.json` goes.
    pub run_dir: Option<PathBuf>,
    /// `AQUIFER_JOB`: name of the job.
    pub job: String,
    /// `AQUIFER_ATTEMPT`: which try of the job this is, from 1. Keeps ranks of an earlier try out of the group.
    pub attempt: u64,
    /// `AQUIFER_CPUS` in whole threads: at least 1, and all processors where it is absent.
    pub threads: usize,
}

/// A variable that cannot be understood.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{name} is {value:?}; {allowed}")]
pub struct ContractError {
    name: &'static str,
    value: String,
    allowed: String,
}

impl Default for Contract {
    fn default() -> Contract {
        Contract::from_variables(|_| None).expect("every variable has a default")
    }
}

impl Contract {
    /// Reads the environment.
    ///
    /// # Errors
    /// Names the first variable that is no such number, or a rank outside its group.
    pub fn from_env() -> Result<Contract, ContractError> {
        Contract::from_variables(|name| std::env::var(name).ok())
    }

    /// Where files may lie for a while.
    pub fn scratch(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// Reads variables from anywhere. An empty variable counts as absent.
    ///
    /// # Errors
    /// As [`Contract::from_env`].
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Contract, ContractError> {
        let text = |name: &str| get(name).filter(|value| !value.is_empty());
        let number = |name: &'static str, default: u64, least: u64, most: u64| {
            let Some(value) = text(name) else { return Ok(default) };
            match value.parse() {
                Ok(number) if (least..=most).contains(&number) => Ok(number),
                _ => Err(ContractError {
                    name,
                    value,
                    allowed: format!("it is a number from {least} to {most}"),
                }),
            }
        };
        let world_size = number("WORLD_SIZE", 1, 1, 1 << 20)?;
        let local_world_size = number("LOCAL_WORLD_SIZE", 1, 1, world_size)?;
        let run_dir = text("AQUIFER_RUN_DIR").map(PathBuf::from);
        // Where members come and go, their numbers are not those of places.
        let changes = run_dir.as_ref().is_some_and(|dir| dir.join("members.json").exists());
        let most = if changes { u64::from(u32::MAX) } else { world_size - 1 };
        Ok(Contract {
            rank: number("RANK", 0, 0, most)? as usize,
            world_size: world_size as usize,
            local_rank: number("LOCAL_RANK", 0, 0, local_world_size - 1)? as usize,
            local_world_size: local_world_size as usize,
            master_addr: text("MASTER_ADDR").unwrap_or_else(|| "127.0.0.1".into()),
            master_port: number("MASTER_PORT", 29_500, 1, 65_535)? as u16,
            run_dir,
            job: text("AQUIFER_JOB").unwrap_or_else(|| "by-hand".into()),
            attempt: number("AQUIFER_ATTEMPT", 1, 0, u64::MAX)?,
            threads: threads(text("AQUIFER_CPUS"))?,
        })
    }
}

/// Whether threads of the kernels may stay on cores of their own: not where `AQUIFER_PIN` is `off`, or `AQUIFER_CPUS` has a
/// fraction, which no thread can have by itself.
pub fn pins(get: impl Fn(&str) -> Option<String>) -> bool {
    let fraction = |cpus: &String| cpus.parse::<f64>().is_ok_and(|cpus| cpus.fract() != 0.0);
    get("AQUIFER_PIN").is_none_or(|value| value != "off")
        && !get("AQUIFER_CPUS").is_some_and(|cpus| fraction(&cpus))
}

fn threads(cpus: Option<String>) -> Result<usize, ContractError> {
    let Some(value) = cpus else {
        return Ok(std::thread::available_parallelism().map_or(1, usize::from));
    };
    match value.parse::<f64>() {
        Ok(cpus) if 0.0 < cpus && cpus <= 65_536.0 => Ok((cpus.floor() as usize).max(1)),
        _ => {
            let allowed = "it is a number of cores above 0".into();
            Err(ContractError { name: "AQUIFER_CPUS", value, allowed })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Contract, String> {
        let find =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        Contract::from_variables(find).map_err(|error| error.to_string())
    }

    #[test]
    fn without_any_variable_the_group_is_one_rank() {
        let contract = read(&[]).unwrap();
        assert_eq!((contract.rank, contract.world_size, contract.run_dir), (0, 1, None));
        assert!(1 <= contract.threads);
    }

    #[test]
    fn fractions_of_a_core_are_rounded_down_to_at_least_one_thread() {
        for (cpus, threads) in [("1", 1), ("0.5", 1), ("2.9", 2), ("16", 16)] {
            assert_eq!(read(&[("AQUIFER_CPUS", cpus)]).unwrap().threads, threads);
        }
    }

    #[test]
    fn threads_are_pinned_but_where_that_is_off_or_cores_have_a_fraction() {
        for (variables, expected) in [
            (&[][..], true),
            (&[("AQUIFER_CPUS", "2")], true),
            (&[("AQUIFER_CPUS", "2.5")], false),
            (&[("AQUIFER_PIN", "off")], false),
        ] {
            let find = |name: &str| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
            };
            assert_eq!(pins(find), expected, "{variables:?}");
        }
    }

    #[test]
    fn a_variable_that_makes_no_sense_is_named_with_its_value() {
        assert_eq!(
            read(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err(),
            "RANK is \"2\"; it is a number from 0 to 1"
        );
        assert_eq!(
            read(&[("AQUIFER_CPUS", "two")]).unwrap_err(),
            "AQUIFER_CPUS is \"two\"; it is a number of cores above 0"
        );
    }
}
