//! Which line had an id first.

use std::collections::HashMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// The ids of all lines so far, in 24 bytes for each that was given and next to nothing for the rows without one.
#[derive(Debug, Default)]
pub(super) struct Ids {
    /// Half a SHA-256 of each id given → its line. A collision would call a good row a duplicate: at 10^12 ids, once in 10^14 runs.
    given: HashMap<[u8; 16], u64>,
    /// Runs (first, last) of lines whose id is their number, ascending.
    numbered: Vec<(u64, u64)>,
}

impl Ids {
    /// Notes the id of line `number`, which is that number where none was `given`; gives the line that had the same id first.
    pub fn claim(&mut self, given: Option<&Value>, number: u64) -> Option<u64> {
        let Some(id) = given else {
            let earlier = self.given.get(&key(&number.into())).copied();
            match self.numbered.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => self.numbered.push((number, number)),
            }
            return earlier;
        };
        if let Some(earlier) = id.as_u64().filter(|&id| self.is_numbered(id)) {
            return Some(earlier);
        }
        let first = *self.given.entry(key(id)).or_insert(number);
        (first != number).then_some(first)
    }

    fn is_numbered(&self, number: u64) -> bool {
        let run = self.numbered.partition_point(|&(first, _)| first <= number);
        run > 0 && number <= self.numbered[run - 1].1
    }
}

/// The string `"7"` and the number 7 are different ids: JSON tells them apart, and so does the output.
fn key(id: &Value) -> [u8; 16] {
    let hash = Sha256::digest(id.to_string().as_bytes());
    let mut key = [0; 16];
    key.copy_from_slice(&hash[..16]);
    key
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_line_of_an_id_is_told_to_all_others() {
        let mut ids = Ids::default();
        assert_eq!(ids.claim(Some(&json!("a")), 1), None);
        assert_eq!(ids.claim(Some(&json!("b")), 2), None);
        assert_eq!(ids.claim(Some(&json!("a")), 3), Some(1));
        assert_eq!(ids.claim(Some(&json!("a")), 4), Some(1));
    }

    #[test]
    fn a_string_is_not_the_number_it_spells() {
        let mut ids = Ids::default();
        assert_eq!(ids.claim(Some(&json!("7")), 1), None);
        assert_eq!(ids.claim(Some(&json!(7)), 2), None);
        assert_eq!(ids.claim(Some(&json!(-7)), 3), None);
        assert_eq!(ids.claim(None, 7), Some(2));
    }

    #[test]
    fn line_numbers_count_as_ids_of_rows_without_one() {
        let mut ids = Ids::default();
        for number in [1, 2, 5, 6] {
            assert_eq!(ids.claim(None, number), None);
        }
        assert_eq!(ids.numbered, [(1, 2), (5, 6)]);
        assert_eq!(ids.claim(Some(&json!(2)), 7), Some(2));
        assert_eq!(ids.claim(Some(&json!(4)), 8), None, "line 4 was blank");
        assert_eq!(ids.claim(Some(&json!(5)), 9), Some(5));
        assert_eq!(ids.claim(Some(&json!(100)), 10), None);
    }
}
