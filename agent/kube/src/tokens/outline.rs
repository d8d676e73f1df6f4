//! What a token claims about itself. Nobody has vouched for it: it only saves questions, and bounds how long answers
//! are remembered.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// The claims of a JWT (RFC 7519 section 4.1) that Kubernetes writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outline {
    pub(super) subject: String,
    pub(super) audiences: Vec<String>,
    /// When the token ends, in seconds since 1970.
    expires: u64,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    aud: OneOrMore,
    exp: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

// === impl Outline ===

impl Outline {
    /// Reads a token's claims. Returns `None` for a text that is no token, or a token without an end.
    pub(super) fn read(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let (Some(_), Some(claims), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        let Claims { sub, aud, exp } =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        let audiences = match aud {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        };
        Some(Self { subject: sub, audiences, expires: exp })
    }

    /// Returns how long the token is still valid.
    pub(super) fn left(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Duration::from_secs(self.expires).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn claims_are_read_with_one_audience_or_more() {
        let one = Outline::read(&token(r#"{"sub":"s","aud":"a","exp":9999999999,"x":1}"#)).unwrap();
        let more = Outline::read(&token(r#"{"sub":"s","aud":["a"],"exp":9999999999}"#)).unwrap();
        assert_eq!(one, more);
        assert_eq!((one.subject.as_str(), one.audiences), ("s", vec!["a".to_owned()]));
        assert!(more.left() > Duration::from_hours(1));
    }

    #[test]
    fn what_is_over_has_nothing_left() {
        let over = Outline::read(&token(r#"{"sub":"s","aud":"a","exp":1}"#)).unwrap();
        assert_eq!(over.left(), Duration::ZERO);
    }

    #[test]
    fn what_is_no_token_has_no_outline() {
        for text in ["", "a", "a.b", "..", "a.b.c.d", "a.!!.c"] {
            assert_eq!(Outline::read(text), None, "{text}");
        }
        for claims in ["", "[]", "{}", r#"{"sub":"s","aud":"a"}"#, r#"{"sub":1,"aud":"a","exp":2}"#]
        {
            assert_eq!(Outline::read(&token(claims)), None, "{claims}");
        }
    }
}
