//! A client of the controller's CA: a real gRPC request, sent by curl.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

/// The server name in the controller's certificate.
pub const SERVER_NAME: &str = "ca.test";
const METHOD: &str = "istio.v1.auth.IstioCertificateService/CreateCertificate";

/// A client that trusts given roots.
#[derive(Clone, Debug)]
pub struct CaClient {
    address: SocketAddr,
    directory: PathBuf,
}

/// The CA's answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The certificate chain in PEM: the leaf first, the roots last.
    Issued(Vec<String>),
    /// A refusal.
    Refused {
        /// gRPC's code: 7 is permission denied, 14 unavailable, 16 unauthenticated.
        code: u32,
        /// The name of the rule that refused, and its explanation.
        message: String,
    },
}

// === impl CaClient ===

impl CaClient {
    /// Makes a client of the CA at `address`, which trusts `roots` and keeps its files in `directory`.
    pub fn new(address: SocketAddr, directory: &Path, roots: &str) -> Result<Self> {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("roots.pem"), roots)?;
        Ok(Self { address, directory: directory.to_owned() })
    }

    /// Asks for a certificate of `identity`, a SPIFFE ID, as the holder of `token`.
    pub fn ask(&self, token: &str, identity: &str) -> Result<Answer> {
        let at = |name: &str| self.directory.join(name);
        fs::write(at("request"), request(identity)?)?;
        fs::write(at("token"), format!("authorization: Bearer {}\n", token.trim()))?;
        fs::write(at("answer"), "")?;
        let port = self.address.port();
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--http2", "--max-time", "15", "--noproxy", "*"])
            .args(["--resolve", &format!("{SERVER_NAME}:{port}:{}", self.address.ip())])
            .arg("--cacert")
            .arg(at("roots.pem"))
            .args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-H"])
            .arg(format!("@{}", at("token").display()))
            .arg("--data-binary")
            .arg(format!("@{}", at("request").display()))
            .arg("--dump-header")
            .arg(at("headers"))
            .arg("--output")
            .arg(at("answer"))
            .arg(format!("https://{SERVER_NAME}:{port}/{METHOD}"))
            .output()
            .context("run curl: apt-get install curl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "curl: {}: {said}", output.status);
        answer(&fs::read_to_string(at("headers"))?, &fs::read(at("answer"))?)
    }
}

// === impl Answer ===

impl Answer {
    /// Returns the chain. Fails if the request was refused.
    pub fn issued(self) -> Result<Vec<String>> {
        match self {
            Self::Issued(chain) => Ok(chain),
            Self::Refused { code, message } => anyhow::bail!("refused with code {code}: {message}"),
        }
    }

    /// Returns whether this is a refusal with the code `expected` whose message begins with `rule`.
    pub fn is_refused(&self, expected: u32, rule: &str) -> bool {
        matches!(self, Self::Refused { code, message } if *code == expected && message.starts_with(rule))
    }
}

/// Encodes an `IstioCertificateRequest` in gRPC's frame: csr = 1, `validity_duration` = 3, metadata = 4.
fn request(identity: &str) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&KeyPair::generate()?)?.pem()?;
    // google.protobuf.Struct: fields = 1, a map entry (key = 1, value = 2), whose string_value = 3.
    let value = field(3, identity.as_bytes());
    let entry = [field(1, b"ImpersonatedIdentity"), field(2, &value)].concat();
    let message = [
        field(1, csr.as_bytes()),
        vec![3 << 3, 60], // seconds
        field(4, &field(1, &entry)),
    ]
    .concat();
    let length = u32::try_from(message.len())?;
    Ok([&[0][..], &length.to_be_bytes(), &message].concat())
}

/// Encodes a field with a length (protobuf's wire type 2).
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut encoded = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        encoded.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    encoded.push(u8::try_from(length).unwrap_or_default());
    encoded.extend_from_slice(bytes);
    encoded
}

fn answer(headers: &str, body: &[u8]) -> Result<Answer> {
    let header = |name: &str| {
        let values = headers.lines().filter_map(|line| line.split_once(':'));
        let mut found = values.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.trim().to_owned())
    };
    let code: u32 =
        header("grpc-status").with_context(|| format!("no gRPC: {headers}"))?.parse()?;
    if code != 0 {
        let message = unescape(&header("grpc-message").unwrap_or_default());
        return Ok(Answer::Refused { code, message });
    }
    // IstioCertificateResponse: cert_chain = 1, repeated.
    let mut rest = body.get(5..).context("no frame")?;
    let mut chain = Vec::new();
    while let Some((&tag, mut tail)) = rest.split_first() {
        ensure!(tag == 1 << 3 | 2, "field {tag} in the answer");
        let (mut length, mut shift) = (0, 0);
        loop {
            let (&byte, after) = tail.split_first().context("an answer that ends early")?;
            length |= usize::from(byte & 0x7f) << shift;
            (tail, shift) = (after, shift + 7);
            if byte < 0x80 {
                break;
            }
        }
        let (text, after) = tail.split_at_checked(length).context("an answer that ends early")?;
        chain.push(String::from_utf8(text.to_vec())?);
        rest = after;
    }
    Ok(Answer::Issued(chain))
}

/// Decodes a gRPC message, which has `%XX` for what is not printable ASCII.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let (b'%', Some(code)) = (byte, code) {
            bytes.push(code);
            rest = after.get(2..).unwrap_or_default();
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
