//! An authority's key and certificate in a Secret.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, api::PostParams, runtime::watcher::Event};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{
    ApiServer,
    client::{ApiFault, within},
    events,
};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";

/// What an authority's Secret holds, as PEM in cert-manager's layout.
pub struct CaTexts {
    /// The issuing certificate first, then those above it (`tls.crt`).
    pub certificate: Vec<u8>,
    /// Its private key (`tls.key`); wiped when dropped.
    pub key: Zeroizing<String>,
    /// The roots that peers trust (`ca.crt`).
    pub roots: Option<Vec<u8>>,
}

/// Why a Secret gives no authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The API server refuses, or cannot be reached.
    #[error(transparent)]
    Api(#[from] ApiFault),
    /// Something is missing in the Secret.
    #[error(
        "it has no {0}, as cert-manager writes it: complete it, or delete it to have a new CA made"
    )]
    Lacks(&'static str),
    /// The key is no text.
    #[error("its tls.key is not PEM: replace it")]
    NotPem,
}

/// The Secret of an authority, which is followed.
pub struct CaSecret {
    api: Api<Secret>,
    namespace: String,
    name: String,
    /// The version of the Secret that was last read.
    read: Mutex<Option<String>>,
    /// The Secret's current version; `None` until it is known, or when there is no Secret.
    present: tokio::sync::Mutex<watch::Receiver<Option<String>>>,
}

// === impl CaSecret ===

impl CaSecret {
    /// Starts to follow a Secret, whether or not it is there.
    pub fn follow(server: &ApiServer, namespace: &str, name: &str) -> Self {
        let api: Api<Secret> = Api::namespaced(server.0.clone(), namespace);
        let (sender, present) = watch::channel(None);
        let (followed, fields) = (api.clone(), format!("metadata.name={name}"));
        let secret = format!("{namespace}/{name}");
        tokio::spawn(async move {
            let what = ("following the CA's Secret", "get, list and watch on the CA's secret");
            loop {
                events::follow(followed.clone(), &fields, what, |event| {
                    take(&sender, &secret, event);
                })
                .await;
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        });
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let present = tokio::sync::Mutex::new(present);
        Self { api, namespace, name, read: Mutex::default(), present }
    }

    /// Returns the Secret's namespace and name.
    pub fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Returns what the Secret holds now, or `None` when it does not exist.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not complete.
    pub async fn read(&self) -> Result<Option<CaTexts>, SecretError> {
        let what = "reading the CA's Secret";
        let found = within(self.api.get_opt(&self.name))
            .await
            .map_err(|error| ApiFault::new(what, "get on the CA's secret", &error))?;
        let Some(secret) = found else { return Ok(None) };
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) =
            secret.metadata.resource_version;
        texts(secret.data.unwrap_or_default()).map(Some)
    }

    /// Creates the Secret with a self-signed certificate and its key. Returns `false` if somebody else was faster.
    ///
    /// # Errors
    ///
    /// When the API server refuses.
    pub async fn create(&self, certificate: &str, key: &str) -> Result<bool, ApiFault> {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let mut secret =
            Secret { type_: Some("kubernetes.io/tls".to_owned()), ..Secret::default() };
        secret.metadata.name = Some(self.name.clone());
        secret.metadata.labels =
            Some([("app.kubernetes.io/part-of".to_owned(), "sluice".to_owned())].into());
        secret.data = Some(
            [(CERTIFICATE, certificate), (KEY, key), (ROOTS, certificate)]
                .into_iter()
                .map(|(name, text)| (name.to_owned(), bytes(text)))
                .collect(),
        );
        match within(self.api.create(&PostParams::default(), &secret)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => {
                let needs = "create on secrets in the controller's namespace";
                Err(ApiFault::new("creating the CA's Secret", needs, &error))
            }
        }
    }

    /// Waits until the Secret has a version that [`Self::read`] has not seen. Each version is reported once.
    pub async fn changed(&self) {
        let mut present = self.present.lock().await;
        while present.changed().await.is_ok() {
            let now = present.borrow_and_update().clone();
            let read = self.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if now.is_some() && now != read {
                return;
            }
        }
        // The sender is gone: the runtime ends.
        std::future::pending::<()>().await;
    }
}

fn take(present: &watch::Sender<Option<String>>, secret: &str, event: Event<Secret>) {
    match event {
        Event::InitApply(found) | Event::Apply(found) => {
            present.send_replace(found.metadata.resource_version);
        }
        Event::Delete(_) => {
            tracing::error!(
                secret,
                "the CA's Secret is gone: this replica goes on with what it held; put it back, or the next \
                 replica that starts makes a new CA",
            );
            present.send_replace(None);
        }
        Event::Init | Event::InitDone => {}
    }
}

fn texts(mut data: BTreeMap<String, ByteString>) -> Result<CaTexts, SecretError> {
    let mut take = |name: &str| data.remove(name).map(|ByteString(bytes)| bytes);
    let filled = |bytes: &Vec<u8>| !bytes.is_empty();
    let certificate = take(CERTIFICATE).filter(filled).ok_or(SecretError::Lacks(CERTIFICATE))?;
    let key = take(KEY).filter(filled).ok_or(SecretError::Lacks(KEY))?;
    let key = String::from_utf8(key).map_err(|_not_text| SecretError::NotPem)?;
    let roots = take(ROOTS).filter(filled);
    Ok(CaTexts { certificate, key: Zeroizing::new(key), roots })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(entries: &[(&str, &[u8])]) -> BTreeMap<String, ByteString> {
        entries
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), ByteString(bytes.to_vec())))
            .collect()
    }

    #[test]
    fn a_secret_as_cert_manager_writes_it_is_read() {
        let read =
            texts(data(&[("tls.crt", b"c"), ("tls.key", b"k"), ("ca.crt", b"r"), ("x", b"")]));
        let CaTexts { certificate, key, roots } = read.ok().unwrap();
        assert_eq!((certificate.as_slice(), key.as_str()), (&b"c"[..], "k"));
        assert_eq!(roots.as_deref(), Some(&b"r"[..]));
        let without_roots = texts(data(&[("tls.crt", b"c"), ("tls.key", b"k"), ("ca.crt", b"")]));
        assert_eq!(without_roots.ok().unwrap().roots, None);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (entries, expected) in [
            (&[][..], SecretError::Lacks("tls.crt")),
            (&[("tls.crt", &b"c"[..])][..], SecretError::Lacks("tls.key")),
            (&[("tls.crt", &b"c"[..]), ("tls.key", b"")][..], SecretError::Lacks("tls.key")),
            (&[("tls.crt", &b"c"[..]), ("tls.key", b"\xff")][..], SecretError::NotPem),
        ] {
            assert_eq!(texts(data(entries)).err(), Some(expected));
        }
    }
}
