//! Real files, changed as operators and Kubernetes change them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CrlDistributionPoint, CrlIssuingDistributionPoint, DnType, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use sluice_tls::{SystemClock, TestClock};
use time::OffsetDateTime;

use super::{state::LAST_GOOD_STAYS, *};

type Authority = CertifiedIssuer<'static, KeyPair>;

const PATIENCE: Duration = Duration::from_secs(10);

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn crl(authority: &Authority, number: u64, seconds: i64) -> String {
    crl_part(authority, None, number, seconds)
}

/// A list of those certificates alone that name the point `url`.
fn crl_part(authority: &Authority, url: Option<&str>, number: u64, seconds: i64) -> String {
    let point = |url: &str| CrlIssuingDistributionPoint {
        distribution_point: CrlDistributionPoint { uris: vec![url.to_owned()] },
        scope: None,
    };
    let now = OffsetDateTime::now_utc();
    CertificateRevocationListParams {
        this_update: now,
        next_update: now + time::Duration::seconds(seconds),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: url.map(point),
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(number),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    }
    .signed_by(authority)
    .unwrap()
    .pem()
    .unwrap()
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn follow(files: TrustFiles) -> Result<Trust, TrustError> {
    Trust::follow(files, domain(), Delivered::default(), Arc::new(SystemClock))
}

/// Waits until the bundle is as it should be.
fn wait(trust: &Trust, what: &str, is: impl Fn(&TrustBundle) -> bool) {
    let start = Instant::now();
    while !is(&trust.bundles().borrow()) {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_for_fault(trust: &Trust, text: &str) {
    let start = Instant::now();
    while !trust.faults().borrow().iter().any(|fault| fault.contains(text)) {
        assert!(start.elapsed() < PATIENCE, "no fault {text:?}: {:?}", trust.faults().borrow());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_for_peace(trust: &Trust) {
    let start = Instant::now();
    while !trust.faults().borrow().is_empty() {
        assert!(start.elapsed() < PATIENCE, "still: {:?}", trust.faults().borrow());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("new");
    fs::write(&draft, text).unwrap();
    fs::rename(draft, path).unwrap();
}

#[test]
fn roots_follow_their_file_and_bad_ones_change_nothing() {
    let (old, new) = (authority("old"), authority("new"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("roots.pem");
    fs::write(&path, old.pem()).unwrap();
    let trust = follow(TrustFiles { roots: Some(path.clone()), ..TrustFiles::default() }).unwrap();
    let count = |count| move |bundle: &TrustBundle| bundle.roots(&domain()).len() == count;
    wait(&trust, "old", count(1));
    replace(&path, &(old.pem() + &new.pem()));
    wait(&trust, "both", count(2));
    for bad in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        replace(&path, bad);
        wait_for_fault(&trust, "roots.pem: ");
        assert!(count(2)(&trust.bundles().borrow()), "{bad:?}");
    }
    fs::remove_file(&path).unwrap();
    wait_for_fault(&trust, "cannot be read");
    assert!(count(2)(&trust.bundles().borrow()), "without a file");
    replace(&path, &new.pem());
    wait(&trust, "new", |bundle| *bundle.roots(&domain()) == [new.der().clone()]);
    wait_for_peace(&trust);
}

#[test]
fn a_config_map_is_followed_through_its_link() {
    let (old, new) = (authority("old"), authority("new"));
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (version, roots) in [("..1", old.pem()), ("..2", new.pem())] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("roots.pem"), roots).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/roots.pem", at("roots.pem")).unwrap();
    let files = TrustFiles { roots: Some(at("roots.pem")), ..TrustFiles::default() };
    let trust = follow(files).unwrap();
    assert_eq!(trust.bundles().borrow().roots(&domain()), [old.der().clone()]);
    symlink("..2", at("..data_tmp")).unwrap();
    let start = Instant::now();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    wait(&trust, "the new version", |bundle| *bundle.roots(&domain()) == [new.der().clone()]);
    assert!(start.elapsed() < Duration::from_secs(1), "only after {:?}", start.elapsed());
}

#[test]
fn a_writer_that_is_not_done_yet_removes_no_root() {
    use std::io::Write as _;
    let roots: Vec<_> = (0..3).map(|index| authority(&format!("root {index}")).pem()).collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("roots.pem");
    fs::write(&path, roots.concat()).unwrap();
    let files = TrustFiles { roots: Some(path.clone()), ..TrustFiles::default() };
    let trust = follow(files).unwrap();
    let mut seen = trust.bundles();
    seen.mark_unchanged();
    let mut writer = fs::File::create(&path).unwrap();
    for root in &roots {
        writer.write_all(root.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(400));
    }
    drop(writer);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!seen.has_changed().unwrap());
}

#[test]
fn delivered_roots_count_where_no_file_says_otherwise() {
    let (own, file, other) = (authority("own"), authority("file"), authority("other"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.pem");
    fs::write(&path, file.pem()).unwrap();
    let (partner, third): (TrustDomain, TrustDomain) =
        ("partner.org".parse().unwrap(), "third.org".parse().unwrap());
    let files = TrustFiles { federated: vec![(partner.clone(), path)], ..TrustFiles::default() };
    let trust = follow(files).unwrap();
    assert!(trust.bundles().borrow().roots(&domain()).is_empty());
    let of_other = || vec![other.der().clone()];
    trust.deliver(Delivered {
        local: vec![own.der().clone()],
        federated: [(partner.clone(), of_other()), (third.clone(), of_other())].into(),
    });
    wait(&trust, "own roots", |bundle| *bundle.roots(&domain()) == [own.der().clone()]);
    let bundle = trust.bundles().borrow().clone();
    assert_eq!(bundle.roots(&partner), [file.der().clone()]);
    assert_eq!(bundle.roots(&third), of_other());
}

#[test]
fn the_denied_follow_their_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("denied.yaml");
    fs::write(&path, "- spiffe://cluster.local/ns/shop/sa/web\n").unwrap();
    let trust = follow(TrustFiles { denied: Some(path.clone()), ..TrustFiles::default() }).unwrap();
    let denies =
        |bundle: &TrustBundle, id: &str| bundle.revocations().denied().denies(&id.parse().unwrap());
    let (web, cart) =
        ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/cart");
    assert!(denies(&trust.bundles().borrow(), web));
    for (bad, fault) in [
        ("", "denied.yaml:1: is empty"),
        ("- spiffe://cluster.local/ns/shop/sa/cart\n- nobody\n", "denied.yaml:2: \"nobody\""),
        ("web: true\n", "denied.yaml:1:"),
    ] {
        replace(&path, bad);
        wait_for_fault(&trust, fault);
        assert!(denies(&trust.bundles().borrow(), web), "{bad:?}");
    }
    replace(&path, "- spiffe://cluster.local/ns/shop/sa/cart\n");
    wait(&trust, "cart", |bundle| denies(bundle, cart) && !denies(bundle, web));
    replace(&path, "[]\n");
    wait(&trust, "nobody", |bundle| bundle.revocations().denied().is_empty());
}

#[test]
fn bad_files_stop_the_start_unless_they_are_revocation_lists() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad");
    fs::write(&path, "nonsense").unwrap();
    let none = TrustFiles::default();
    for files in [
        TrustFiles { roots: Some(path.clone()), ..none.clone() },
        TrustFiles { denied: Some(path.clone()), ..none.clone() },
        TrustFiles { federated: vec![("a".parse().unwrap(), path.clone())], ..none.clone() },
        TrustFiles { denied: Some(directory.path().join("missing")), ..none.clone() },
    ] {
        let error = follow(files).unwrap_err().to_string();
        assert!(error.starts_with(directory.path().to_str().unwrap()), "{error}");
    }
    let trust = follow(TrustFiles { crls: vec![path], ..none }).unwrap();
    wait_for_fault(&trust, "no good content is known yet");
}

/// The root of `authority` and a directory for revocation lists, both followed.
fn with_crls(authority: &Authority) -> (tempfile::TempDir, TrustFiles) {
    let directory = tempfile::tempdir().unwrap();
    let (roots, crls) = (directory.path().join("roots.pem"), directory.path().join("crls"));
    fs::create_dir(&crls).unwrap();
    fs::write(&roots, authority.pem()).unwrap();
    (directory, TrustFiles { roots: Some(roots), crls: vec![crls], ..TrustFiles::default() })
}

#[test]
fn lists_are_followed_forwards_only() {
    let root = authority("root");
    let (directory, files) = with_crls(&root);
    let at = |name: &str| directory.path().join(name);
    fs::write(at("crls/a.crl"), crl(&root, 5, 3600)).unwrap();
    let trust = follow(files).unwrap();
    let update =
        |bundle: &TrustBundle| bundle.revocations().crls().map(|crl| crl.der().to_vec()).next();
    let fifth = update(&trust.bundles().borrow()).unwrap();
    replace(&at("crls/a.crl"), &crl(&root, 4, 3600));
    wait_for_fault(&trust, "is number 04, but 05 is in force");
    assert_eq!(update(&trust.bundles().borrow()), Some(fifth.clone()));
    replace(&at("crls/a.crl"), "nonsense");
    wait_for_fault(&trust, "a.crl: is not a usable revocation list");
    assert_eq!(update(&trust.bundles().borrow()), Some(fifth.clone()));
    replace(&at("crls/a.crl"), &crl(&authority("root"), 9, 3600));
    wait_for_fault(&trust, "not signed by its key");
    assert_eq!(update(&trust.bundles().borrow()), Some(fifth.clone()));
    replace(&at("crls/a.crl"), &crl(&root, 6, 3600));
    wait(&trust, "the sixth", |bundle| update(bundle).is_some_and(|der| der != fifth));
    wait_for_peace(&trust);
}

/// The lists in force.
fn lists(bundle: &TrustBundle) -> Vec<Vec<u8>> {
    bundle.revocations().crls().map(|crl| crl.der().to_vec()).collect()
}

#[test]
fn lists_below_a_directory_that_cannot_be_read_stay_in_force_and_removed_ones_do_not() {
    let root = authority("root");
    let (directory, files) = with_crls(&root);
    let at = |name: &str| directory.path().join(name);
    fs::write(at("crls/a.crl"), crl(&root, 5, 3600)).unwrap();
    fs::write(at("target"), crl(&authority("other"), 1, 3600)).unwrap();
    symlink(at("target"), at("crls/b.crl")).unwrap();
    let trust = follow(files).unwrap();
    let both = lists(&trust.bundles().borrow());
    assert_eq!(both.len(), 2);
    let mut seen = trust.bundles();
    seen.mark_unchanged();
    // The directory is away, or is there and cannot be listed.
    fs::rename(at("crls"), at("away")).unwrap();
    wait_for_fault(&trust, "crls: cannot be read");
    wait_for_fault(&trust, LAST_GOOD_STAYS);
    symlink(at("crls"), at("crls")).unwrap();
    wait_for_fault(&trust, "symbolic links");
    fs::remove_file(at("crls")).unwrap();
    fs::rename(at("away"), at("crls")).unwrap();
    wait_for_peace(&trust);
    // A link to nowhere is there.
    fs::rename(at("target"), at("elsewhere")).unwrap();
    // What tells of the directory tells of the link too.
    replace(&at("crls/a.crl"), &crl(&root, 4, 3600));
    wait_for_fault(&trust, "b.crl: cannot be read");
    wait_for_fault(&trust, "is number 04, but 05 is in force");
    assert!(!seen.has_changed().unwrap());
    assert_eq!(lists(&trust.bundles().borrow()), both);
    fs::remove_file(at("crls/b.crl")).unwrap();
    wait(&trust, "one list", |bundle| lists(bundle) == both[..1]);
}

#[test]
fn under_refuse_nobody_is_judged_by_lists_of_a_directory_that_cannot_be_read() {
    let root = authority("root");
    let (directory, files) = with_crls(&root);
    let at = |name: &str| directory.path().join(name);
    fs::write(at("crls/a.crl"), crl(&root, 5, 3600)).unwrap();
    let files = TrustFiles { crl_policy: CrlPolicy::Refuse, ..files };
    let trust = follow(files).unwrap();
    let good = trust.bundles().borrow().clone();
    fs::rename(at("crls"), at("away")).unwrap();
    wait(&trust, "a lapsed list", |bundle| *bundle != *good && lists(bundle) == lists(&good));
    fs::rename(at("away"), at("crls")).unwrap();
    wait(&trust, "the list in force", |bundle| *bundle == *good);
}

#[test]
fn the_lists_among_which_an_authority_divides_are_in_force_together() {
    let root = authority("root");
    let (directory, files) = with_crls(&root);
    let at = |name: &str| directory.path().join(name);
    let part = |part: &str, number| {
        crl_part(&root, Some(&format!("http://ca.example/{part}")), number, 3600)
    };
    fs::write(at("crls/a.crl"), part("a", 5)).unwrap();
    fs::write(at("crls/b.crl"), part("b", 9)).unwrap();
    fs::write(at("crls/b-again.crl"), part("b", 8)).unwrap();
    let trust = follow(files).unwrap();
    let before = lists(&trust.bundles().borrow());
    assert_eq!(before.len(), 2);
    replace(&at("crls/a.crl"), &part("a", 4));
    wait_for_fault(&trust, "is number 04, but 05 is in force");
    assert_eq!(lists(&trust.bundles().borrow()), before);
    replace(&at("crls/a.crl"), &part("a", 6));
    wait(&trust, "the sixth beside the ninth", |bundle| {
        let now = lists(bundle);
        now.len() == 2 && now[0] != before[0] && now[1] == before[1]
    });
    wait_for_peace(&trust);
}

#[test]
fn a_list_that_expires_is_reported_and_under_refuse_it_is_a_change_of_trust() {
    let root = authority("root");
    let directory = tempfile::tempdir().unwrap();
    let (roots, list) = (directory.path().join("roots.pem"), directory.path().join("a.crl"));
    fs::write(&roots, root.pem()).unwrap();
    fs::write(&list, crl(&root, 1, 600)).unwrap();
    for (crl_policy, is_change) in [(CrlPolicy::KeepLastGood, false), (CrlPolicy::Refuse, true)] {
        let clock = TestClock::started_now();
        let (roots, crls) = (Some(roots.clone()), vec![list.clone()]);
        let files = TrustFiles { roots, crls, crl_policy, ..TrustFiles::default() };
        let trust = Trust::follow(files, domain(), Delivered::default(), clock.clone()).unwrap();
        let mut seen = trust.bundles();
        seen.mark_unchanged();
        clock.advance(Duration::from_secs(601));
        wait_for_fault(&trust, "should have been replaced at");
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(seen.has_changed().unwrap(), is_change, "{crl_policy:?}");
        clock.rewind(Duration::from_secs(601));
        wait_for_peace(&trust);
    }
}
