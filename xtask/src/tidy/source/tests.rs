//! Tests of each rule: a file that breaks it and one that does not.

use super::*;

fn advice(file: &str, text: &str) -> Vec<String> {
    check(Path::new(file), text).iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_opens_with_its_purpose() {
    assert!(advice("agent/x/src/a.rs", "//! What it is.\n").is_empty());
    assert!(advice("agent/x/src/a.rs", "#![no_std]\n//! What it is.\n").is_empty());
    assert!(
        advice("agent/x/src/a.rs", "#![cfg_attr(\n    test,\n    no_std\n)]\n//! What it is.\n")
            .is_empty()
    );
    assert_eq!(advice("agent/x/src/a.rs", "use a;\n//! Late.\n").len(), 1);
    assert_eq!(advice("agent/x/src/a.rs", "").len(), 1);
}

#[test]
fn long_files_are_refused_and_tests_may_be_longer() {
    let text = format!("//! Long.\n{}", "\n".repeat(450));
    assert_eq!(
        advice("agent/x/src/a.rs", &text),
        ["agent/x/src/a.rs:401: 451 lines of code, 400 are the limit: split it by concern"]
    );
    assert!(advice("agent/x/src/a/tests.rs", &text).is_empty());
    assert!(advice("tests/tests/capture.rs", &text).is_empty());
    assert_eq!(advice("tests/src/lab.rs", &text).len(), 1);
}

#[test]
fn names_that_say_nothing_are_refused() {
    assert_eq!(advice("agent/x/src/utils.rs", "//! Things.\n").len(), 1);
    assert_eq!(advice("agent/x/src/common/a.rs", "//! Things.\n").len(), 1);
    assert!(advice("agent/x/src/utilisation.rs", "//! How busy.\n").is_empty());
}

#[test]
fn leftovers_are_found_as_words_with_their_line() {
    let text = format!("//! A.\n// {}: later\n", concat!("TO", "DO"));
    assert_eq!(advice("agent/x/src/a.rs", &text).len(), 1);
    assert!(
        advice("agent/x/src/a.rs", &text)
            .iter()
            .all(|line| line.starts_with("agent/x/src/a.rs:2: "))
    );
    assert!(advice("agent/x/src/a.rs", "//! A.\nconst MASTODON: u8 = 1;\n").is_empty());
    assert!(
        advice(
            "agent/x/src/a.rs",
            &format!("//! A.\nconst A_{}_B: u8 = 1;\n", concat!("TO", "DO"))
        )
        .is_empty()
    );
}

#[test]
fn the_same_reason_for_two_unsafe_blocks_is_refused() {
    let mut texts = SafetyTexts::default();
    texts.add(Path::new("a.rs"), "// SAFETY: the pointer\n// is valid.\nunsafe {}\n");
    texts.add(
        Path::new("b.rs"),
        "\n    // SAFETY: the pointer is valid.\n    unsafe {}\n// SAFETY: another.\n",
    );
    let repeated = texts.repeated();
    assert_eq!(repeated.len(), 1);
    let text = repeated.iter().map(ToString::to_string).collect::<String>();
    assert!(text.starts_with("b.rs:2: the same SAFETY text as a.rs:1"), "{text}");
}
