//! The cluster's credentials: a certificate authority, two certificates, a key for tokens, and kubeconfigs.

use std::{fmt::Write as _, fs::File, io::Read as _, path::PathBuf};

use anyhow::{Context as _, Result};

use super::instance::{API_SERVICE, Addresses, Instance, NODES};
use crate::process;

/// The components that speak to the API server: name, user and groups.
const COMPONENTS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("kube-controller-manager", "system:kube-controller-manager", ""),
    ("kube-scheduler", "system:kube-scheduler", ""),
    ("kube-proxy", "system:kube-proxy", ""),
];

/// Returns the path of a file of keys, certificates or tokens.
pub(crate) fn file(instance: &Instance, name: &str) -> PathBuf {
    instance.path("pki").join(name)
}

/// Returns the path of a component's kubeconfig.
pub(crate) fn kubeconfig(instance: &Instance, component: &str) -> PathBuf {
    instance.path("kubeconfigs").join(component)
}

/// Makes all keys, certificates, tokens and kubeconfigs anew.
pub(crate) fn make(instance: &Instance, addresses: Addresses) -> Result<()> {
    certificates(instance, addresses)?;
    let ca = std::fs::read(file(instance, "ca.crt")).context("cannot read the CA certificate")?;
    let ca = base64(&ca);
    let mut tokens = String::new();
    let mut give = |component: &str, user: &str, groups: &str| -> Result<()> {
        let token = random_token()?;
        writeln!(tokens, "{token},{user},{component},\"{groups}\"")?;
        let text = kubeconfig_text(addresses, instance.name(), &ca, &token);
        instance.write(&format!("kubeconfigs/{component}"), &text)?;
        if component == "admin" { instance.write("kubeconfig", text) } else { Ok(()) }
    };
    for (component, user, groups) in COMPONENTS {
        give(component, user, groups)?;
    }
    for node in NODES {
        give(node.name, &format!("system:node:{}", node.name), "system:nodes")?;
    }
    instance.write("pki/tokens.csv", tokens)
}

fn certificates(instance: &Instance, addresses: Addresses) -> Result<()> {
    let mut names = String::from("DNS:localhost,DNS:kubernetes,DNS:kubernetes.default");
    names.push_str(",DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local");
    let [service4, service6] = API_SERVICE.map(str::to_owned);
    for address in [
        addresses.control4(),
        addresses.control6(),
        service4,
        service6,
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ] {
        write!(names, ",IP:{address}")?;
    }
    let config = format!(
        "[req]\ndistinguished_name = subject\nprompt = no\n[subject]\n\
         [ca]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign,cRLSign\n\
         subjectKeyIdentifier = hash\n\
         [server]\nbasicConstraints = critical,CA:FALSE\nextendedKeyUsage = serverAuth\nsubjectAltName = {names}\n\
         [client]\nbasicConstraints = critical,CA:FALSE\nextendedKeyUsage = clientAuth\n"
    );
    instance.write("pki/openssl.conf", config)?;
    issue(instance, "ca", "/CN=sluice-cluster")?;
    issue(instance, "server", "/CN=kube-apiserver")?;
    issue(instance, "client", "/O=system:masters/CN=kube-apiserver-kubelet-client")?;
    let mut keys = openssl(instance);
    keys.args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    process::output(keys.args(["-out", "tokens.key"]))?;
    let mut public = openssl(instance);
    process::output(public.args(["pkey", "-in", "tokens.key", "-pubout", "-out", "tokens.pub"]))
        .map(drop)
}

/// Makes a key and its certificate, with the extensions in the section of the same name. `ca` signs itself.
fn issue(instance: &Instance, name: &str, subject: &str) -> Result<()> {
    let mut request = openssl(instance);
    request.args(["req", "-x509", "-config", "openssl.conf", "-days", "365", "-nodes"]);
    request.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    request.args(["-subj", subject, "-extensions", name]);
    request.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")]);
    if name != "ca" {
        request.args(["-CA", "ca.crt", "-CAkey", "ca.key"]);
    }
    process::output(&mut request).map(drop)
}

fn openssl(instance: &Instance) -> std::process::Command {
    let mut command = process::command("openssl");
    command.current_dir(instance.path("pki"));
    command
}

fn kubeconfig_text(addresses: Addresses, name: &str, ca: &str, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: sluice-{name}\n\
         clusters:\n- name: sluice-{name}\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n\
         users:\n- name: sluice-{name}\n  user:\n    token: {token}\n\
         contexts:\n- name: sluice-{name}\n  context:\n    cluster: sluice-{name}\n    user: sluice-{name}\n",
        server = addresses.server(),
    )
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 18];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    // 18 is a multiple of three, so there is no padding, and no comma or quote, which separate the tokens' fields.
    Ok(base64(&bytes))
}

/// Encodes the bytes in base 64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .chain(&[0; 3])
            .take(3)
            .fold(0_usize, |group, byte| group << 8 | usize::from(*byte));
        for place in 0..4 {
            let digit = ALPHABET.get(group >> (18 - 6 * place) & 63).copied().unwrap_or(b'=');
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_examples_of_rfc_4648() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn tokens_differ() {
        assert_ne!(random_token().unwrap(), random_token().unwrap());
    }
}
