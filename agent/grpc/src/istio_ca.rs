//! `istio.v1.auth`: the certificate service of istiod, of cert-manager's istio-csr, and of our controller.

use std::collections::BTreeMap;

pub use self::generated::{
    IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_client,
    istio_certificate_service_server,
};
use crate::{Kind, Struct, Value};

/// The metadata field that names the identity for which a node's agent asks on a pod's behalf.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// Returns metadata that asks for a certificate of `identity`, a SPIFFE ID.
pub fn impersonating(identity: &str) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(identity.to_owned())) };
    Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]) }
}

#[expect(
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/, where the documentation is"
)]
mod generated {
    tonic::include_proto!("istio.v1.auth");
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_request_is_on_the_wire_as_published() {
        let request = IstioCertificateRequest {
            csr: "c".to_owned(),
            validity_duration: 60,
            metadata: Some(impersonating("s")),
        };
        let identity = b"\x0a\x1b\x0a\x14ImpersonatedIdentity\x12\x03\x1a\x01s";
        let mut expected = b"\x0a\x01c\x18\x3c\x22".to_vec();
        expected.push(u8::try_from(identity.len()).unwrap());
        expected.extend_from_slice(identity);
        assert_eq!(request.encode_to_vec(), expected, "fields 1, 3 and 4");
    }

    #[test]
    fn an_answer_is_on_the_wire_as_published() {
        let answer = IstioCertificateResponse { cert_chain: vec!["a".into(), "b".into()] };
        assert_eq!(answer.encode_to_vec(), b"\x0a\x01a\x0a\x01b", "field 1, repeated");
    }
}
