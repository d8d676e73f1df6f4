//! Names as Kubernetes accepts them (RFC 1123).

/// The longest DNS label.
const MAX_LABEL_BYTES: usize = 63;
/// The longest DNS name.
const MAX_SUBDOMAIN_BYTES: usize = 253;

/// Returns whether `text` can name a namespace or a service.
pub(crate) fn is_label(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=MAX_LABEL_BYTES).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Returns whether `text` can name a pod, a node or a service account.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_SUBDOMAIN_BYTES && text.split('.').all(is_label)
}
