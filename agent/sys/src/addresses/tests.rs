//! Which of a namespace's addresses count.

use std::collections::BTreeSet;

use crate::{addresses, lab::Namespace};

#[test]
fn neither_loopback_nor_link_local_addresses_count() {
    let (node, pod) = (Namespace::new("a-node"), Namespace::new("a-pod"));
    assert!(addresses(&pod.open()).unwrap().is_empty());
    pod.veth("eth0", "host0", &node);
    for link in ["lo", "eth0"] {
        pod.ip(&format!("link set {link} up"));
    }
    for address in ["10.9.0.2/24", "10.9.1.2 peer 10.9.1.1", "169.254.7.7/16", "fd00:9::2/64"] {
        pod.ip(&format!("address add {address} dev eth0"));
    }
    let found: BTreeSet<_> = addresses(&pod.open()).unwrap().into_iter().collect();
    let expected = ["10.9.0.2", "10.9.1.2", "fd00:9::2"];
    assert_eq!(found, expected.iter().map(|text| text.parse().unwrap()).collect());
}
