//! The protocol between the plugin and the agent, on a Unix socket that only root may use.
//!
//! A connection carries one question and one answer, each a JSON object after its length in four bytes, big endian.
//! Unknown fields are ignored, and an unknown question is answered with [`Answer::NotUnderstood`]: a plugin and an
//! agent of different versions get along while a node is upgraded.

use std::{
    io::{self, Read, Write},
    net::IpAddr,
    path::PathBuf,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The longest message that either side takes, in bytes. GC lists every attachment of a node in one.
pub const MAX_MESSAGE: u32 = 4 << 20;

/// What the plugin was called with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the network that the plugin is chained in.
    pub network: String,
    /// The sandbox, and its interface.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// The path of the sandbox's network namespace, absolute and without links; absent when DEL comes after its end.
    pub netns: Option<PathBuf>,
    /// The addresses that the plugins before us gave the pod.
    pub addresses: Vec<IpAddr>,
    /// The pod, when Kubernetes is behind the call.
    pub pod: Option<PodName>,
}

/// The name that a runtime gives an attachment; unique within a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentId {
    /// `CNI_CONTAINERID`.
    #[serde(rename = "containerID")]
    pub container: String,
    /// `CNI_IFNAME`.
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// A pod by its Kubernetes names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`, which older runtimes do not give.
    pub uid: Option<String>,
}

/// A question of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "camelCase")]
pub enum Request {
    /// A pod starts: answered once it is captured, or known to be outside the mesh.
    Add(Attachment),
    /// A pod has ended.
    Del(Attachment),
    /// Is the pod as ADD left it?
    Check(Attachment),
    /// Could a pod be added now?
    Status,
    /// Is the plugin to be in the node's network lists? Asked by whoever keeps it there.
    Entry {
        /// Whether the plugin is there now.
        present: bool,
    },
    /// These attachments of the network are still valid, and no others.
    Gc {
        /// Name of the network.
        network: String,
        /// The attachments that are still valid.
        valid: Vec<AttachmentId>,
    },
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Answer {
    /// The pod is captured, as the kernel has just confirmed.
    Captured,
    /// The mesh does not want the pod; or, answering [`Request::Entry`], the plugin, because Sluice is being
    /// uninstalled.
    Outside,
    /// What was asked for is done, or could be done.
    Done,
    /// It cannot be decided or done now.
    TryAgain {
        /// Why.
        reason: String,
    },
    /// The pod is not as it should be.
    Amiss {
        /// What is wrong.
        reason: String,
    },
    /// The agent is of another version and does not know the question.
    NotUnderstood {
        /// What the agent made of the question.
        reason: String,
    },
}

/// Writes one message.
pub fn send(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    stream.write_all(&encode(message)?)
}

/// Returns one message as it is sent.
///
/// # Errors
///
/// When it is longer than [`MAX_MESSAGE`].
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|length| *length <= MAX_MESSAGE);
    let length = length.ok_or_else(|| too_long(body.len()))?;
    Ok([length.to_be_bytes().as_slice(), &body].concat())
}

/// Reads one message.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; body_length(length)?];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Returns the length of the message that follows these four bytes.
///
/// # Errors
///
/// When that is more than [`MAX_MESSAGE`].
pub fn body_length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(header);
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE { Err(too_long(size)) } else { Ok(size) }
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a message of {length} bytes is longer than the {MAX_MESSAGE} that are allowed"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire_and_later_versions() {
        let id = AttachmentId { container: "c1".into(), interface: "eth0".into() };
        let attachment = Attachment {
            network: "pods".into(),
            id: id.clone(),
            netns: Some("/run/netns/x".into()),
            addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            pod: Some(PodName { namespace: "shop".into(), name: "web".into(), uid: None }),
        };
        for request in [
            Request::Add(attachment.clone()),
            Request::Del(attachment),
            Request::Status,
            Request::Entry { present: true },
            Request::Gc { network: "pods".into(), valid: vec![id] },
        ] {
            let bytes = encode(&request).unwrap();
            assert_eq!(receive::<Request>(&mut bytes.as_slice()).unwrap(), request);
        }
        let later = r#"{"answer":"tryAgain","reason":"x","since":5}"#;
        let answer: Answer = serde_json::from_str(later).unwrap();
        assert_eq!(answer, Answer::TryAgain { reason: "x".into() });
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_is_read() {
        assert!(body_length((MAX_MESSAGE + 1).to_be_bytes()).is_err());
        assert!(encode(&"x".repeat(5 << 20)).is_err());
        assert!(receive::<Answer>(&mut [0, 0, 0, 9, b'{'].as_slice()).is_err());
    }
}
