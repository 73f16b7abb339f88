//! Fields of a `config.json`, asked for by name and type.

use serde_json::{Map, Value};

/// A JSON object and what its absent fields mean; `null` counts as absent, as in `transformers`.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    pub object: &'a Map<String, Value>,
    /// Values of fields that the object does not have.
    pub defaults: &'a Map<String, Value>,
    /// Values of fields that are these whatever the object says.
    pub fixed: &'a Map<String, Value>,
    /// What the object calls a field that is asked for by another name: `(asked for, here)`.
    pub names: &'static [(&'static str, &'static str)],
    /// Of those fields the ones that it may call by the other name too, which goes before.
    pub aliases: &'static [&'static str],
    /// The object's own name with a dot, for messages.
    pub within: &'static str,
}

impl<'a> Fields<'a> {
    /// The object's own name of a field.
    pub fn own<'n>(&self, name: &'n str) -> &'n str {
        self.names.iter().find(|(other, _)| *other == name).map_or(name, |(_, own)| own)
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        if let Some(value) = self.fixed.get(self.own(name)) {
            return Some(value).filter(|value| !value.is_null());
        }
        let alias = self.aliases.contains(&name).then(|| self.object.get(name)).flatten();
        if let Some(value) = alias.filter(|value| !value.is_null()) {
            return Some(value);
        }
        let name = self.own(name);
        self.object.get(name).or_else(|| self.defaults.get(name)).filter(|value| !value.is_null())
    }

    /// A field that is what the family has also where it is null.
    pub fn get_or_default(&self, name: &str) -> Option<&'a Value> {
        self.get(name).or_else(|| self.defaults.get(self.own(name)).filter(|value| !value.is_null()))
    }

    /// The fields without those that the family does not know: they mean nothing in its models.
    pub fn known(&self, name: &str) -> Option<&'a Value> {
        let own = self.own(name);
        let is_known = self.defaults.contains_key(own) || self.fixed.contains_key(own);
        is_known.then(|| self.get(name)).flatten()
    }

    /// A flag that the family knows.
    pub fn known_flag(&self, name: &str) -> Result<Option<bool>, String> {
        if self.known(name).is_some() { self.flag(name) } else { Ok(None) }
    }

    /// A number that the family knows.
    pub fn known_number(&self, name: &str) -> Result<Option<f64>, String> {
        if self.known(name).is_some() { self.optional_number(name) } else { Ok(None) }
    }

    /// A number that the family knows, which is the family's where it is null.
    pub fn own_number(&self, name: &str) -> Result<Option<f64>, String> {
        match self.known_number(name)? {
            Some(number) => Ok(Some(number)),
            None => Ok(self.get_or_default(name).and_then(Value::as_f64)),
        }
    }

    pub fn size(&self, name: &str) -> Result<usize, String> {
        match self.get(name) {
            // Sizes beyond 2^32 are no sizes of any model, and products of them would overflow.
            Some(value) => match value.as_u64() {
                Some(size) if size > 0 && size < 1 << 32 => Ok(size as usize),
                _ => Err(format!(
                    "{}{} is {value}, expected an integer from 1 to 4294967295",
                    self.within,
                    self.own(name)
                )),
            },
            None => Err(format!("has no {}{}", self.within, self.own(name))),
        }
    }

    pub fn size_up_to(&self, most: usize, name: &str) -> Result<usize, String> {
        match self.size(name)? {
            size if size <= most => Ok(size),
            size => Err(format!("{}{} is {size}, expected at most {most}", self.within, self.own(name))),
        }
    }

    pub fn size_or(&self, name: &str, default: usize) -> Result<usize, String> {
        if self.get(name).is_some() { self.size(name) } else { Ok(default) }
    }

    pub fn optional_number(&self, name: &str) -> Result<Option<f64>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number >= 0.0 => Ok(Some(number)),
                _ => Err(format!(
                    "{}{} is {value}, expected a number that is not negative",
                    self.within,
                    self.own(name)
                )),
            },
        }
    }

    pub fn number(&self, name: &str) -> Result<f64, String> {
        self.optional_number(name)?.ok_or_else(|| format!("has no {}{}", self.within, self.own(name)))
    }

    pub fn number_or(&self, name: &str, default: f64) -> Result<f64, String> {
        Ok(self.optional_number(name)?.unwrap_or(default))
    }

    /// The scaling factor, which must not be zero.
    pub fn factor(&self) -> Result<f64, String> {
        match self.number("factor")? {
            factor if factor > 0.0 => Ok(factor),
            factor => Err(format!("{}factor is {factor}, expected a positive number", self.within)),
        }
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => {
                Err(format!("{}{} is {other}, expected true or false", self.within, self.own(name)))
            }
        }
    }
}
