//! `--shard`: which part of the rows, as told or as a scheduler's environment tells it.

use crate::{Error, Result, output::Shard};
use std::str::FromStr;

/// Which part of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardChoice {
    Given(Shard),
    Auto,
}

impl FromStr for ShardChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let (index, count) =
            numbers.ok_or("expected auto, or i/n: part i, from 0 to n - 1, of n (0/8 to 7/8)")?;
        Shard::new(index, count).map(Self::Given)
    }
}

/// What tells the number of shards where the scheduler does not.
const COUNT: &str = "TUCO_SHARD_COUNT";

impl ShardChoice {
    /// The part; `variable` reads the environment.
    ///
    /// # Errors
    /// A usage error where it does not tell. One shard of several must never pass for all.
    pub fn resolve(self, variable: impl Fn(&str) -> Option<String>) -> Result<Shard> {
        if let Self::Given(shard) = self {
            return Ok(shard);
        }
        let is_set = |name: &str| variable(name).is_some();
        match (is_set("SLURM_ARRAY_TASK_ID"), is_set("JOB_COMPLETION_INDEX")) {
            (true, false) => slurm(variable),
            (false, true) => kubernetes(variable),
            (true, true) => Err(Error::usage(
                "--shard auto: both SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX are set; tell --shard i/n",
            )),
            (false, false) => Err(Error::usage(
                "--shard auto: neither SLURM_ARRAY_TASK_ID (a Slurm array) nor JOB_COMPLETION_INDEX (a Kubernetes Indexed \
                 Job) is set; tell --shard i/n",
            )),
        }
    }
}

/// A number of the environment.
fn number(variable: impl Fn(&str) -> Option<String>, name: &str) -> Result<u64> {
    match variable(name) {
        None => Err(Error::usage(format!("--shard auto: {name} is not set"))),
        Some(text) => text.parse().map_err(|_| {
            Error::usage(format!("--shard auto: {name} is {text:?}, expected a number from 0 on"))
        }),
    }
}

/// `--array=0-15` has shards 0 to 15 of 16, and so have `--array=1-16` and `--array=0-60:4`.
fn slurm(variable: impl Fn(&str) -> Option<String>) -> Result<Shard> {
    let told = |name: &str| number(&variable, &format!("SLURM_ARRAY_TASK_{name}"));
    let (id, count, min) = (told("ID")?, told("COUNT")?, told("MIN")?);
    let step = if variable("SLURM_ARRAY_TASK_STEP").is_some() { told("STEP")?.max(1) } else { 1 };
    let max = if variable("SLURM_ARRAY_TASK_MAX").is_some() { Some(told("MAX")?) } else { None };
    let from_min = id.checked_sub(min).filter(|from_min| from_min % step == 0);
    let is_whole = max.is_none_or(|max| max.checked_sub(min).is_some_and(|span| span / step + 1 == count));
    let shard = from_min.filter(|_| is_whole).and_then(|from_min| Shard::new(from_min / step, count).ok());
    shard.ok_or_else(|| {
        Error::usage(format!(
            "--shard auto: task {id} of {count} from {min} on is no part of an array without gaps; tell --shard i/n, with \
             the n of the first run"
        ))
    })
}

fn kubernetes(variable: impl Fn(&str) -> Option<String>) -> Result<Shard> {
    let index = number(&variable, "JOB_COMPLETION_INDEX")?;
    let count = number(&variable, COUNT).map_err(|error| {
        Error::usage(format!("{error} (the Job's completions; Kubernetes does not tell them)"))
    })?;
    Shard::new(index, count)
        .map_err(|problem| Error::usage(format!("--shard auto: {problem} (JOB_COMPLETION_INDEX, {COUNT})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto(environment: &[(&str, &str)]) -> Result<Shard> {
        let variable = |name: &str| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        ShardChoice::Auto.resolve(variable)
    }

    fn array<'a>(id: &'a str, count: &'a str, min: &'a str) -> [(&'a str, &'a str); 3] {
        [("SLURM_ARRAY_TASK_ID", id), ("SLURM_ARRAY_TASK_COUNT", count), ("SLURM_ARRAY_TASK_MIN", min)]
    }

    #[test]
    fn shards_are_told_as_people_write_them() {
        let shard = |index, count| Ok(ShardChoice::Given(Shard { index, count }));
        assert_eq!("3/16".parse(), shard(3, 16));
        assert_eq!("auto".parse(), Ok(ShardChoice::Auto));
        for wrong in ["", "3", "/16", "3/", "16/16", "-1/16", "0/0", "a/b", "1/2/3", "Auto"] {
            assert!(wrong.parse::<ShardChoice>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_slurm_array_tells_the_shard() {
        let shard = |index, count| Ok(Shard { index, count });
        assert_eq!(auto(&array("3", "16", "0")), shard(3, 16));
        assert_eq!(auto(&array("16", "16", "1")), shard(15, 16));
        let stepped = [&array("60", "16", "0")[..], &[("SLURM_ARRAY_TASK_STEP", "4")]].concat();
        assert_eq!(auto(&stepped), shard(15, 16));
        // --array=0,2 and --array=1,3,7: some of a larger array.
        let gaps = [&array("0", "2", "0")[..], &[("SLURM_ARRAY_TASK_MAX", "2")]].concat();
        for wrong in [&gaps[..], &array("7", "3", "1"), &array("", "3", "1"), &array("1", "x", "1")] {
            assert_eq!(auto(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
        for missing in 0..3 {
            let mut environment = array("3", "16", "0").to_vec();
            environment.remove(missing);
            assert_eq!(auto(&environment).unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn an_indexed_job_tells_the_shard() {
        let index = ("JOB_COMPLETION_INDEX", "2");
        assert_eq!(auto(&[index, (COUNT, "8")]), Ok(Shard { index: 2, count: 8 }));
        assert!(auto(&[index]).unwrap_err().message.contains(COUNT));
        assert!(auto(&[index, (COUNT, "2")]).is_err());
        assert!(auto(&[index, (COUNT, "8"), ("SLURM_ARRAY_TASK_ID", "1")]).is_err());
    }
}
