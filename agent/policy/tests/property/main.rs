//! Compares the compiled evaluator with a naive one, on random policies and connections.
//!
//! `PROPTEST_CASES` sets how many sets of policies are tried (3,000 by default); each judges [`CONNECTIONS`]
//! connections. The naive evaluator gets the same JSON as the reader, so the whole way from text to verdict is
//! compared.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

mod generate;
mod reference;

use std::collections::BTreeMap;

use proptest::test_runner::{Config, TestCaseError, TestRunner};
use sluice_policy::{Connection, DenyReason, MtlsMode, PolicySet, Verdict, read};
use sluice_spiffe::SpiffeId;

use generate::{Attempt, ROOT_NAMESPACE};
use reference::Answer;

const DEFAULT_CASES: u32 = 3_000;
const CONNECTIONS: usize = 24;

#[test]
fn the_compiled_evaluator_agrees_with_the_naive_one() {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(DEFAULT_CASES);
    // Sources and operations that come out empty are rejected and drawn again; the number of rejects grows with the
    // cases.
    let config = Config {
        cases,
        failure_persistence: None,
        max_local_rejects: u32::MAX,
        ..Config::default()
    };
    // How often each answer was given: a generator that only ever leads to one proves nothing.
    let seen = std::cell::RefCell::new(BTreeMap::<&str, u64>::new());
    let outcome = TestRunner::new(config).run(&generate::cases(CONNECTIONS), |case| {
        let text = case.objects.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n---\n");
        let objects = read("generated", &text)
            .map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        let set = PolicySet::compile(&objects, &[], ROOT_NAMESPACE).set;
        for attempt in &case.attempts {
            let expected = reference::judge(&case.objects, ROOT_NAMESPACE, attempt);
            let found = judge(&set, attempt);
            agree(&expected, &found)
                .map_err(|why| TestCaseError::fail(format!("{why}\n{attempt:#?}\n{text}")))?;
            *seen.borrow_mut().entry(expected.kind()).or_default() += 1;
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    println!("{seen:?}");
    let all: u64 = seen.values().sum();
    for kind in ["allowed", "denied by a policy", "not allowed", "plaintext", "mutual TLS"] {
        let count = seen.get(kind).copied().unwrap_or(0);
        assert!(
            count * 100 > all,
            "{kind}: only {count} of {all} connections; the generator has gone blind"
        );
    }
}

fn judge(set: &PolicySet, attempt: &Attempt) -> (MtlsMode, Verdict) {
    let policy = set.for_workload(&attempt.namespace, &attempt.labels);
    let principal: Option<SpiffeId> =
        attempt.identity.as_ref().map(|identity| identity.parse().unwrap());
    let connection = Connection {
        principal: principal.as_ref(),
        source: attempt.source,
        destination: (attempt.destination, attempt.port).into(),
    };
    (policy.mode(attempt.port), policy.decide(&connection))
}

fn agree(expected: &Answer, (mode, found): &(MtlsMode, Verdict)) -> Result<(), String> {
    let mode = match mode {
        MtlsMode::Strict => "STRICT",
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Disable => "DISABLE",
    };
    let same = mode == expected.mode
        && match found {
            Verdict::Allow => expected.kind() == "allowed",
            Verdict::Deny(DenyReason::DeniedBy(name)) => {
                expected.kind() == "denied by a policy"
                    && expected.denied_by.contains(name.as_ref())
            }
            Verdict::Deny(DenyReason::NotAllowed) => expected.kind() == "not allowed",
            Verdict::Deny(DenyReason::PlaintextUnderStrict) => expected.kind() == "plaintext",
            Verdict::Deny(DenyReason::MtlsDisabled) => expected.kind() == "mutual TLS",
            Verdict::Deny(DenyReason::PolicyUnknown(_)) => false,
        };
    if same { Ok(()) } else { Err(format!("expected {expected:?}, found {mode} {found:?}")) }
}
