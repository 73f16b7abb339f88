//! The dictionary that tells a refusal: phrases, with a version that goes into every summary.

use crate::{Error, Result, hash::sha256};
use serde_json::{Value, json};
use std::{fs, path::Path};

const SHIPPED: &str = include_str!("refusals.txt");

/// Phrases that refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusals {
    /// Where it is from.
    source: String,
    /// What a line `# version: …` says.
    version: Option<String>,
    sha256: String,
    phrases: Vec<String>,
}

impl Refusals {
    /// The dictionary that comes with the program.
    pub fn shipped() -> Self {
        Self::parse("shipped", SHIPPED).expect("it has phrases")
    }

    /// Reads a dictionary: a phrase a line, `#` begins a comment, `# version: NAME` names it.
    ///
    /// # Errors
    /// A usage error where the file cannot be read or has no phrase.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| Error::unreadable(path, &error))?;
        Self::parse(&path.display().to_string(), &text).ok_or_else(|| {
            Error::usage(format!("{} has no phrase of refusal, expected one a line", path.display()))
        })
    }

    fn parse(source: &str, text: &str) -> Option<Self> {
        let (comments, phrases): (Vec<&str>, Vec<&str>) = text
            .trim_start_matches('\u{feff}')
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .partition(|line| line.starts_with('#'));
        let version =
            comments.iter().find_map(|line| line.trim_start_matches('#').trim().strip_prefix("version:"));
        (!phrases.is_empty()).then(|| Self {
            source: source.to_owned(),
            version: version.map(|version| version.trim().to_owned()),
            sha256: sha256(text.as_bytes()),
            phrases: phrases.into_iter().map(straight).collect(),
        })
    }

    /// Of the file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The phrase that comes first in `text`, of several at one place the longest.
    pub fn find(&self, text: &str) -> Option<&str> {
        let text = straight(text);
        let found = self.phrases.iter().filter_map(|phrase| Some((text.find(phrase.as_str())?, phrase)));
        let first = found.min_by_key(|(start, phrase)| (*start, std::cmp::Reverse(phrase.len())));
        first.map(|(_, phrase)| phrase.as_str())
    }

    /// For a summary.
    pub fn to_json(&self) -> Value {
        json!({
            "source": self.source,
            "version": self.version,
            "sha256": self.sha256,
            "phrases": self.phrases.len(),
        })
    }
}

/// Typographic apostrophes as plain ones.
fn straight(text: &str) -> String {
    text.replace('\u{2019}', "'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_longest_phrase_is_found_whatever_its_apostrophe() {
        let shipped = Refusals::shipped();
        assert_eq!(shipped.find("Well, I\u{2019}m sorry, but I cannot."), Some("I'm sorry"));
        assert_eq!(shipped.find("That is ILLEGAL"), None);
        let own = Refusals::parse("own", "# version: mine 2\n\nNo\nNo way\n").unwrap();
        assert_eq!((own.find("Oh No way"), own.version.as_deref()), (Some("No way"), Some("mine 2")));
        assert_eq!(Refusals::parse("empty", "# nothing\n\n"), None);
    }

    #[test]
    fn the_shipped_dictionary_is_versioned() {
        let about = Refusals::shipped().to_json();
        assert_eq!((&about["version"], about["phrases"].as_u64()), (&"1".into(), Some(20)));
    }
}
