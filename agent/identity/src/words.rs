//! Other programs' words, made fit for one line of a log.

use std::error::Error;

const MAX_CHARS: usize = 400;

/// Returns `text` without control characters, cut off after `MAX_CHARS`.
pub(crate) fn one_line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text.chars().take(MAX_CHARS).map(plain).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        line.push('…');
    }
    line
}

/// Returns `message`, followed by the causes of `error` that say more.
pub(crate) fn with_causes(message: &str, error: &dyn Error) -> String {
    let mut words = message.to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !words.contains(&text) {
            if !words.is_empty() {
                words.push_str(": ");
            }
            words.push_str(&text);
        }
        cause = error.source();
    }
    one_line(&words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_stay_on_one_line_and_short() {
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a b [31m");
        let long = one_line(&"x".repeat(5000));
        assert_eq!(long.chars().count(), MAX_CHARS + 1);
    }
}
