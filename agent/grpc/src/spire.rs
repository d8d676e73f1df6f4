//! `spire.api`: the Delegated Identity API of a SPIRE agent, version 1, without its JWT methods.

use std::fmt;

pub use self::generated::spire::api::{
    agent::delegatedidentity::v1::{
        SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
        SubscribeToX509sviDsResponse, X509svidWithKey, delegated_identity_client,
        delegated_identity_server,
    },
    types::{Selector, Spiffeid, X509svid},
};

impl fmt::Debug for X509svidWithKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509svidWithKey")
            .field("x509_svid", &self.x509_svid)
            .finish_non_exhaustive()
    }
}

#[expect(
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated from proto/, where the documentation is"
)]
mod generated {
    // Generated code refers to another package by module path, so the modules must mirror the
    // packages' names.
    pub mod spire {
        pub mod api {
            pub mod types {
                tonic::include_proto!("spire.api.types");
            }
            pub mod agent {
                pub mod delegatedidentity {
                    pub mod v1 {
                        tonic::include_proto!("spire.api.agent.delegatedidentity.v1");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_subscription_is_on_the_wire_as_published() {
        let selector = Selector { r#type: "k8s".to_owned(), value: "ns:a".to_owned() };
        let request = SubscribeToX509sviDsRequest { selectors: vec![selector], pid: 7 };
        assert_eq!(request.encode_to_vec(), b"\x0a\x0b\x0a\x03k8s\x12\x04ns:a\x10\x07");
    }

    #[test]
    fn a_certificate_is_read_as_published() {
        let wire =
            b"\x0a\x15\x0a\x02\x30\x00\x12\x07\x0a\x01a\x12\x02/b\x18\x3c\x22\x04hint\x12\x01k";
        let svid = X509svidWithKey::decode(wire.as_slice()).unwrap();
        assert_eq!(svid.x509_svid_key, b"k");
        let svid = svid.x509_svid.unwrap();
        assert_eq!(svid.cert_chain, [[0x30, 0]]);
        assert_eq!((svid.expires_at, svid.hint.as_str()), (60, "hint"));
        assert_eq!(svid.id.unwrap(), Spiffeid { trust_domain: "a".into(), path: "/b".into() });
    }

    #[test]
    fn a_key_is_not_printed() {
        let svid = X509svidWithKey { x509_svid: None, x509_svid_key: b"secret".to_vec() };
        assert!(!format!("{svid:?}").contains("115"), "the byte of 's'");
    }
}
