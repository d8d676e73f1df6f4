//! Reads the first bytes of a connection: of an inbound one, as many as it takes to tell mesh TLS from an
//! application's bytes; of a captured one, what has already arrived.

use std::{
    future::poll_fn,
    io,
    task::{Poll, ready},
    time::Duration,
};

use rustix::net::RecvFlags;
use sluice_sys::tcp::TcpStream;
use sluice_wire::{MAX_HELLO_LENGTH, Preamble, classify};
use tokio::time::timeout;

use crate::{deadline::within, scratch::Scratch};

/// How long a client that must speak TLS may take to say hello.
pub(crate) const HELLO_TIME: Duration = Duration::from_secs(10);
/// How long a client from outside the mesh is given to speak first. A protocol in which the server speaks first is
/// delayed by this much, once per connection.
pub(crate) const STRANGER_SILENCE: Duration = Duration::from_millis(100);
/// The same for a pod that has just joined the mesh and may not be captured yet: long enough that its
/// agent, busy with many handshakes, is not taken for a silent application.
pub(crate) const NEWCOMER_SILENCE: Duration = Duration::from_secs(1);

/// Bytes that are read at once.
const PIECE: usize = 2048;

/// What a connection begins with, and the bytes that were read to find out.
pub(crate) struct FirstBytes {
    pub(crate) preamble: Preamble,
    pub(crate) bytes: Vec<u8>,
}

/// Reads until the connection can be judged. A client that says nothing for `silence`, or ends before it has spoken,
/// is taken for an application. Without `silence`, a client that does not end must speak within [`HELLO_TIME`].
pub(crate) async fn read_preamble(
    stream: &TcpStream,
    silence: Option<Duration>,
) -> io::Result<FirstBytes> {
    let mut bytes = Vec::new();
    if let Some(silence) = silence {
        match timeout(silence, read_more(stream, &mut bytes)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0)) | Err(_) => return Ok(FirstBytes { preamble: Preamble::Application, bytes }),
            Ok(Err(error)) => return Err(error),
        }
    }
    let judge = async {
        loop {
            match classify(&bytes) {
                Preamble::Undecided if bytes.len() > MAX_HELLO_LENGTH => {
                    return Ok(Preamble::Application);
                }
                Preamble::Undecided => {}
                Preamble::Mesh => return Ok(Preamble::Mesh),
                Preamble::Application => return Ok(Preamble::Application),
            }
            if read_more(stream, &mut bytes).await? == 0 {
                return Ok(Preamble::Application);
            }
        }
    };
    let preamble = within(HELLO_TIME, judge).await?;
    Ok(FirstBytes { preamble, bytes })
}

async fn read_more(stream: &TcpStream, bytes: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|cx| {
        Scratch::lend(|scratch| {
            let room = scratch.application.get_mut(..PIECE).unwrap_or_default();
            let read = ready!(stream.poll_receive(cx, room))?;
            bytes.extend_from_slice(room.get(..read).unwrap_or_default());
            Poll::Ready(Ok(read))
        })
    })
    .await
}

/// Returns what the application has sent by the time that its connection is accepted, if anything. It leaves in the
/// same packet as the stream's OPEN.
pub(crate) fn first_bytes(application: &TcpStream) -> Vec<u8> {
    Scratch::lend(|scratch| {
        match rustix::net::recv(application, &mut scratch.application[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => scratch.application.get(..length).unwrap_or_default().to_vec(),
            // Nothing yet, or a failure that the relay will meet again and report.
            Err(_) => Vec::new(),
        }
    })
}
