//! Answers as the known CAs form them, and answers that are not chains.

use super::*;
use crate::testing::{Authority, Leaf, WEB};

fn pem_of(der: &CertificateDer<'_>) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref()))
}

/// A leaf below an intermediate below a root.
fn three() -> (Authority, Leaf) {
    let root = Authority::root("root");
    let below = root.intermediate("below");
    let leaf = below.leaf(WEB);
    (root, leaf)
}

fn parts(leaf: &Leaf, roots: &[&Authority]) -> Vec<String> {
    let mut parts: Vec<String> = leaf.chain.iter().map(pem_of).collect();
    parts.extend(roots.iter().map(|root| root.pem().0));
    parts
}

fn refused(parts: &[String]) -> String {
    Delivery::of_pem(parts).unwrap_err().to_string()
}

#[test]
fn one_text_per_certificate_with_the_root_last() {
    let (root, leaf) = three();
    let delivery = Delivery::of_pem(&parts(&leaf, &[&root])).unwrap();
    assert_eq!(delivery.chain.certificates, leaf.chain);
    assert_eq!(delivery.chain.certificates.len(), 2);
    assert_eq!(delivery.roots, [root.der()]);
}

#[test]
fn several_roots_in_the_last_text_and_everything_in_one_text() {
    let (root, leaf) = three();
    let next = Authority::root("next");
    let mut texts = parts(&leaf, &[]);
    texts.push(format!("{}{}", root.pem().0, next.pem().0));
    for texts in [texts.clone(), vec![texts.concat()]] {
        let delivery = Delivery::of_pem(&texts).unwrap();
        assert_eq!(delivery.chain.certificates, leaf.chain);
        assert_eq!(delivery.roots, [root.der(), next.der()]);
    }
}

#[test]
fn without_a_root_the_last_authority_is_still_shown() {
    let (_, leaf) = three();
    let delivery = Delivery::of_pem(&parts(&leaf, &[])).unwrap();
    assert_eq!(delivery.chain.certificates, leaf.chain);
    assert!(delivery.roots.is_empty());
}

#[test]
fn what_is_not_a_chain_is_said_to_be_none() {
    let (root, leaf) = three();
    let mut reversed = parts(&leaf, &[&root]);
    reversed.reverse();
    let words = refused(&reversed);
    assert!(words.contains("begins with the certificate of an authority (\"CN=root\")"), "{words}");
    let other = root.leaf(WEB);
    let two_leaves = [parts(&leaf, &[]), parts(&other, &[])].concat();
    assert!(refused(&two_leaves).starts_with("certificate 3 ("), "{}", refused(&two_leaves));
    for empty in [vec![], vec![String::new()], vec!["certificate: none".to_owned()]] {
        assert_eq!(refused(&empty), "it holds no certificate");
    }
    let cut = vec![parts(&leaf, &[])[0][..200].to_owned()];
    assert!(Delivery::of_pem(&cut).is_err());
    let not_der = vec![pem::encode(&pem::Pem::new("CERTIFICATE", b"0\x03abc".as_slice()))];
    assert!(refused(&not_der).starts_with("certificate 1: "), "{}", refused(&not_der));
    let many = vec![root.pem().0.repeat(17)];
    assert!(refused(&many).contains("17 certificates"));
}

#[test]
fn a_run_of_der_is_taken_apart() {
    let (one, two) = (Authority::root("one").der(), Authority::root("two").der());
    let run = [one.as_ref(), two.as_ref()].concat();
    assert_eq!(certificates_of_der(&run).unwrap(), [one, two]);
    assert_eq!(certificates_of_der(&[]).unwrap(), []);
    for broken in [&run[..run.len() - 1], &[run.as_slice(), b"0"].concat()] {
        assert!(certificates_of_der(broken).is_err());
    }
}
