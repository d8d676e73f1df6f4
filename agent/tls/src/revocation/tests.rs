//! Lists made by rcgen against chains made by rcgen, judged as peers are.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyUsagePurpose, SerialNumber};

use super::*;
use crate::{
    PeerRole, TrustBundle, VerifyError,
    testing::{Authority, Leaf, WEB, at},
    verify_chain,
};

const SERIAL: u64 = 0x0102_0304;

fn leaf(authority: &Authority) -> Leaf {
    authority.leaf_with(|params: &mut CertificateParams| {
        params.serial_number = Some(SerialNumber::from(SERIAL));
    })
}

fn crl(authority: &Authority, number: u64, revoked: &[u64]) -> Arc<Crl> {
    read(&authority.crl_pem(number, revoked, 3600))
}

fn read(pem: &str) -> Arc<Crl> {
    Arc::new(Crl::read_all(pem.as_bytes()).unwrap().pop().unwrap())
}

fn with(bundle: TrustBundle, policy: CrlPolicy, crls: &[(&Arc<Crl>, bool)]) -> TrustBundle {
    let mut revocations = Revocations::new(policy, Arc::default());
    for (crl, lapsed) in crls {
        revocations.add(Arc::clone(crl), *lapsed);
    }
    bundle.without(revocations)
}

fn judge(bundle: &TrustBundle, leaf: &Leaf) -> Result<(), VerifyError> {
    let as_client = verify_chain(bundle, &leaf.chain, PeerRole::Client, at(0));
    let as_server = verify_chain(bundle, &leaf.chain, PeerRole::Server, at(0));
    assert_eq!(as_client, as_server);
    as_client.map(|_| ())
}

#[test]
fn a_listed_leaf_is_refused_and_others_are_not() {
    let root = Authority::root("root");
    let list = crl(&root, 1, &[SERIAL]);
    let bundle = with(root.bundle(), CrlPolicy::KeepLastGood, &[(&list, false)]);
    let refusal = judge(&bundle, &leaf(&root)).unwrap_err();
    assert!(matches!(refusal, VerifyError::Revoked { serial, .. } if serial == "01020304"));
    assert_eq!(judge(&bundle, &root.leaf(WEB)), Ok(()));
}

#[test]
fn a_revoked_intermediate_takes_everybody_below_along() {
    let root = Authority::root("root");
    let intermediate = root.intermediate_with("middle", |params| {
        params.serial_number = Some(SerialNumber::from(SERIAL));
    });
    let list = crl(&root, 1, &[SERIAL]);
    let bundle = with(root.bundle(), CrlPolicy::KeepLastGood, &[(&list, false)]);
    assert!(matches!(judge(&bundle, &intermediate.leaf(WEB)), Err(VerifyError::Revoked { .. })));
}

#[test]
fn the_list_of_an_intermediate_counts() {
    let root = Authority::root("root");
    let intermediate = root.intermediate("middle");
    let list = crl(&intermediate, 1, &[SERIAL]);
    let bundle = with(root.bundle(), CrlPolicy::KeepLastGood, &[(&list, false)]);
    assert!(matches!(judge(&bundle, &leaf(&intermediate)), Err(VerifyError::Revoked { .. })));
    // The same number issued by the root itself belongs to another certificate.
    assert_eq!(judge(&bundle, &leaf(&root)), Ok(()));
}

#[test]
fn a_list_that_the_issuer_did_not_sign_says_nothing() {
    let (root, namesake) = (Authority::root("root"), Authority::root("root"));
    let forged = crl(&namesake, 1, &[SERIAL]);
    let bundle = with(root.bundle(), CrlPolicy::KeepLastGood, &[(&forged, false)]);
    assert_eq!(judge(&bundle, &leaf(&root)), Ok(()));
    let root_der = root.der();
    let error = forged.check_signature([&root_der].into_iter()).unwrap_err();
    assert!(matches!(error, CrlError::Signature { .. }), "{error}");
}

#[test]
fn two_roots_of_one_name_each_have_their_own_list() {
    let (old, new) = (Authority::root("root"), Authority::root("root"));
    let both = [old.der(), new.der()];
    let both = TrustBundle::new(crate::testing::DOMAIN.parse().unwrap(), both).unwrap();
    let (of_old, of_new) = (crl(&old, 1, &[SERIAL]), crl(&new, 1, &[]));
    for order in [[(&of_old, false), (&of_new, false)], [(&of_new, false), (&of_old, false)]] {
        let bundle = with(both.clone(), CrlPolicy::KeepLastGood, &order);
        assert!(matches!(judge(&bundle, &leaf(&old)), Err(VerifyError::Revoked { .. })));
        assert_eq!(judge(&bundle, &leaf(&new)), Ok(()));
    }
}

#[test]
fn an_authority_without_the_usage_may_not_revoke() {
    let root = Authority::root_with("root", |params| {
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    });
    // rcgen does not sign without the usage. So a namesake that has the usage signs, and the root without it is judged.
    let list = crl(&Authority::root("root"), 1, &[]);
    let root_der = root.der();
    let error = list.check_signature([&root_der].into_iter()).unwrap_err();
    assert!(matches!(error, CrlError::Usage { .. }), "{error}");
}

#[test]
fn a_list_that_is_out_of_date_follows_the_policy() {
    let root = Authority::root("root");
    let old = read(&root.crl_pem(1, &[], -10));
    assert!(old.is_expired_at(at(0)));
    let kept = with(root.bundle(), CrlPolicy::KeepLastGood, &[(&old, true)]);
    assert_eq!(judge(&kept, &leaf(&root)), Ok(()));
    let strict = with(root.bundle(), CrlPolicy::Refuse, &[(&old, false)]);
    assert!(matches!(judge(&strict, &leaf(&root)), Err(VerifyError::Unknown { .. })));
    let current = crl(&root, 1, &[]);
    let lapsed = with(root.bundle(), CrlPolicy::Refuse, &[(&current, true)]);
    assert!(matches!(judge(&lapsed, &leaf(&root)), Err(VerifyError::Unknown { .. })));
    let fresh = with(root.bundle(), CrlPolicy::Refuse, &[(&current, false)]);
    assert_eq!(judge(&fresh, &leaf(&root)), Ok(()));
}

#[test]
fn without_any_list_the_strict_policy_believes_nobody() {
    let root = Authority::root("root");
    let mut revocations = Revocations::new(CrlPolicy::Refuse, Arc::default());
    revocations.blinded("a.pem: cannot be read".to_owned());
    let bundle = root.bundle().without(revocations);
    assert!(matches!(judge(&bundle, &leaf(&root)), Err(VerifyError::Unknown { .. })));
}

#[test]
fn numbers_do_not_go_backwards() {
    let root = Authority::root("root");
    let (one, two, many) = (crl(&root, 1, &[]), crl(&root, 2, &[]), crl(&root, 0x100, &[]));
    assert!(two.is_of_same_issuer_and_scope(&one));
    assert_eq!(two.check_successor_of(&one), Ok(()));
    assert_eq!(many.check_successor_of(&two), Ok(()));
    assert!(matches!(two.check_successor_of(&many), Err(CrlError::Older { .. })));
}

#[test]
fn the_parts_of_what_an_authority_revokes_count_together() {
    let root = Authority::root("root");
    let part = |name, number, revoked: &[u64]| {
        let point = format!("http://ca.example/{name}.crl");
        read(&root.crl_part_pem(Some(&point), number, revoked, 3600))
    };
    let (first, next, other) =
        (part("1", 1, &[SERIAL]), part("1", 2, &[SERIAL]), part("2", 9, &[7]));
    assert!(first.is_of_same_issuer_and_scope(&next));
    assert!(!first.is_of_same_issuer_and_scope(&other));
    assert!(!first.is_of_same_issuer_and_scope(&crl(&root, 1, &[])));
    for order in [[(&first, false), (&other, false)], [(&other, false), (&first, false)]] {
        let bundle = with(root.bundle(), CrlPolicy::KeepLastGood, &order);
        assert!(matches!(judge(&bundle, &leaf(&root)), Err(VerifyError::Revoked { .. })));
        assert_eq!(judge(&bundle, &root.leaf(WEB)), Ok(()));
    }
}

#[test]
fn files_may_be_pem_or_der_and_damaged_ones_are_refused() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let pem = root.crl_pem(1, &[], 60) + &other.crl_pem(7, &[9], 60);
    assert_eq!(Crl::read_all(pem.as_bytes()).unwrap().len(), 2);
    let der = Crl::read_all(pem.as_bytes()).unwrap()[0].der().to_vec();
    assert_eq!(Crl::read_all(&der).unwrap().len(), 1);
    assert_eq!(Crl::read_all(b" \n").unwrap_err(), CrlError::Empty);
    assert_eq!(Crl::read_all(root.pem().0.as_bytes()).unwrap_err(), CrlError::Empty);
    for cut in 0..der.len() {
        assert!(Crl::read_all(&der[..cut]).is_err(), "{cut} bytes");
    }
}

#[test]
fn the_denied_are_refused_whatever_they_hold() {
    let root = Authority::root("root");
    let mut denied = DenyList::default();
    denied.add("spiffe://cluster.local/ns/shop/*").unwrap();
    let denied = Revocations::new(CrlPolicy::default(), Arc::new(denied));
    let bundle = root.bundle().without(denied);
    assert!(matches!(judge(&bundle, &root.leaf(WEB)), Err(VerifyError::Denied { .. })));
    assert_eq!(judge(&bundle, &root.leaf("spiffe://cluster.local/ns/bank/sa/web")), Ok(()));
}
