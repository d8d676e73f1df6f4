//! JSON objects whose members keep their order and their exact text.
//!
//! Another plugin's result has to be passed on, and another project's list edited, without so much as a number being
//! written differently.

use std::{fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The members of an object in the order in which they were written.
#[derive(Debug, Default)]
pub(crate) struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    pub(crate) fn parse(text: &'a str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// Returns the text of a member. Of several the last one counts, as it does for Go's decoder.
    pub(crate) fn raw(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| *value)
    }

    /// Returns a member as `T`, or `None` when it is absent or null.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> serde_json::Result<Option<T>> {
        self.raw(key).map_or(Ok(None), |raw| serde_json::from_str(raw.get()))
    }

    /// Returns the object's text with one member set to the string `value` and the others as they were.
    pub(crate) fn with_string(&self, key: &str, value: &str) -> String {
        let value = serde_json::Value::from(value).to_string();
        let others = self.0.iter().filter(|(name, _)| name != key);
        let others = others.map(|(name, raw)| (name.as_str(), raw.get()));
        let members: Vec<_> = std::iter::once((key, value.as_str()))
            .chain(others)
            .map(|(name, raw)| format!("{}:{raw}", serde_json::Value::from(name)))
            .collect();
        format!("{{{}}}", members.join(","))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &'de RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Ordered)
    }
}

/// Returns where `part`, which was borrowed from `whole`, lies in it.
pub(crate) fn range_of(whole: &str, part: &RawValue) -> Range<usize> {
    let start = part.get().as_ptr().addr().saturating_sub(whole.as_ptr().addr());
    start..start + part.get().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_spelling_survive() {
        let text = r#"{"z": 1.50, "cniVersion":"1.0.0", "a":{"deep": 1e400}, "ä": null}"#;
        let members = Members::parse(text).unwrap();
        assert_eq!(
            members.with_string("cniVersion", "1.1.0"),
            r#"{"cniVersion":"1.1.0","z":1.50,"a":{"deep": 1e400},"ä":null}"#
        );
        let raw = members.raw("a").unwrap();
        assert_eq!(&text[range_of(text, raw)], r#"{"deep": 1e400}"#);
        assert_eq!(members.get::<String>("ä").unwrap(), None);
        assert!(members.get::<u8>("cniVersion").is_err());
        assert!(Members::parse("[]").is_err());
    }
}
