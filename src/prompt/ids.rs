//! Which lines use the id of an earlier one: found beforehand, by sorting all ids, in constant memory.

use std::io;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::spill::{Record, Sorted, Sorter};

/// Takes the ids of all lines.
#[derive(Default)]
pub(super) struct Ids {
    /// Half a SHA-256 of each id given, and its line; but of numbers that can be a line's, zero and the number. A collision
    /// would call a good row a duplicate: at 10^12 ids, once in 10^14 runs.
    given: Sorter,
    /// Runs (first, last, 0) of lines whose id is their number, ascending.
    numbered: Sorter,
    /// The run that may go on.
    run: Option<(u64, u64)>,
}

impl Ids {
    /// Notes the id of line `number`, which is that number where none was `given`. Lines come in order.
    pub fn note(&mut self, given: Option<&Value>, number: u64) -> io::Result<()> {
        match (given, &mut self.run) {
            (Some(id), _) => {
                let [high, low] = key(id);
                self.given.push([high, low, number])
            }
            (None, Some((_, last))) if *last + 1 == number => {
                *last = number;
                Ok(())
            }
            (None, run) => match run.replace((number, number)) {
                Some((first, last)) => self.numbered.push([first, last, 0]),
                None => Ok(()),
            },
        }
    }

    /// The lines whose id was used before.
    pub fn duplicates(mut self) -> io::Result<Duplicates> {
        if let Some((first, last)) = self.run {
            self.numbered.push([first, last, 0])?;
        }
        let mut found = Sorter::default();
        let mut runs = Runs { runs: self.numbered.sorted()?, run: None };
        let mut group: Option<([u64; 2], u64)> = None;
        for record in self.given.sorted()? {
            let [high, low, line] = record?;
            let is_numbered = high == 0 && runs.hold(low)?;
            let first = match group {
                Some((key, first)) if key == [high, low] => first,
                // The first line of this id; or the one that has it for its number, wherever that is.
                _ if is_numbered && low < line => low,
                _ => {
                    if is_numbered {
                        found.push([low, line, 0])?;
                    }
                    group = Some(([high, low], line));
                    continue;
                }
            };
            group = Some(([high, low], first));
            found.push([line, first, 0])?;
        }
        Duplicates::new(found.sorted()?)
    }
}

/// Runs of lines, asked for ascending numbers.
struct Runs {
    runs: Sorted,
    run: Option<Record>,
}

impl Runs {
    fn hold(&mut self, number: u64) -> io::Result<bool> {
        while self.run.is_none_or(|[_, last, _]| last < number) {
            match self.runs.next() {
                None => return Ok(false),
                Some(run) => self.run = Some(run?),
            }
        }
        Ok(self.run.is_some_and(|[first, ..]| first <= number))
    }
}

/// Lines whose id an earlier line has used.
pub(super) struct Duplicates {
    /// (line, first line with its id, 0), ascending.
    found: Sorted,
    next: Option<Record>,
}

impl Duplicates {
    fn new(mut found: Sorted) -> io::Result<Self> {
        let next = found.next().transpose()?;
        Ok(Self { found, next })
    }

    /// The line that used the id of line `number` first, if one before it did. Lines are asked for in order.
    pub fn earlier(&mut self, number: u64) -> io::Result<Option<u64>> {
        match self.next {
            Some([line, first, _]) if line == number => {
                self.next = self.found.next().transpose()?;
                Ok(Some(first))
            }
            _ => Ok(None),
        }
    }
}

/// The string `"7"` and the number 7 are different ids: JSON tells them apart, and so does the output.
fn key(id: &Value) -> [u64; 2] {
    /// Keeps hashes apart from numbers.
    const HASH: u64 = 1 << 63;
    if let Some(number) = id.as_u64() {
        return [0, number];
    }
    let hash = Sha256::digest(id.to_string().as_bytes());
    let (numbers, _) = hash.as_chunks();
    [u64::from_le_bytes(numbers[0]) | HASH, u64::from_le_bytes(numbers[1])]
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// What all lines of these numbers and ids are told.
    fn earlier(lines: &[(u64, Option<Value>)]) -> Vec<Option<u64>> {
        let mut ids = Ids::default();
        for (number, id) in lines {
            ids.note(id.as_ref(), *number).unwrap();
        }
        let mut duplicates = ids.duplicates().unwrap();
        lines.iter().map(|(number, _)| duplicates.earlier(*number).unwrap()).collect()
    }

    #[test]
    fn the_first_line_of_an_id_is_told_to_all_others() {
        let lines = ["a", "b", "a", "a"].map(|id| Some(json!(id)));
        let lines: Vec<_> = (1..).zip(lines).collect();
        assert_eq!(earlier(&lines), [None, None, Some(1), Some(1)]);
    }

    #[test]
    fn a_string_is_not_the_number_it_spells() {
        let lines = [(1, Some(json!("7"))), (2, Some(json!(7))), (3, Some(json!(-7))), (7, None)];
        assert_eq!(earlier(&lines), [None, None, None, Some(2)]);
    }

    #[test]
    fn line_numbers_count_as_ids_of_rows_without_one() {
        let ids = [json!(2), json!(4), json!(5), json!(2), json!(100)];
        let given = (7..).zip(ids.map(Some));
        // Lines 3 and 4 were blank.
        let lines: Vec<_> = [1, 2, 5, 6].map(|line| (line, None)).into_iter().chain(given).collect();
        let told = [None, None, None, None, Some(2), None, Some(5), Some(2), None];
        assert_eq!(earlier(&lines), told);
    }

    proptest! {
        #[test]
        fn all_lines_are_told_what_a_table_of_all_ids_says(
            lines in prop::collection::vec((1u64..3, prop::option::of((0u64..60, any::<bool>()))), 0..200)
        ) {
            let mut number = 0;
            let lines: Vec<(u64, Option<Value>)> = lines.into_iter().map(|(step, id)| {
                number += step;
                let id = id.map(|(id, is_text)| if is_text { json!(id.to_string()) } else { json!(id) });
                (number, id)
            }).collect();
            let mut first = HashMap::new();
            let expected: Vec<Option<u64>> = lines.iter().map(|(number, id)| {
                let id = id.clone().unwrap_or(json!(number));
                let first = *first.entry(id.to_string()).or_insert(*number);
                (first != *number).then_some(first)
            }).collect();
            prop_assert_eq!(earlier(&lines), expected);
        }
    }
}
