//! Carries bytes between two sockets as they are: to and from peers outside the mesh.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use sluice_wire::ResetReason;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{live::Live, scratch::Scratch};

/// Turns of both directions in one poll, before other connections of the worker get theirs.
const TURNS_PER_POLL: usize = 8;

/// How a plaintext connection ended.
#[derive(Debug)]
pub(crate) enum PlainEnd {
    /// Both directions ended.
    Clean,
    /// A socket failed.
    Socket(io::Error),
    /// It was ended from outside.
    Cut(ResetReason),
}

/// One direction: what was read and not yet written, and whether the end was reached and passed on.
#[derive(Debug, Default)]
struct Flow {
    waiting: Vec<u8>,
    ended: bool,
    finished: bool,
}

/// Carries bytes both ways until both have ended; `head` was read from `client` already.
pub(crate) async fn relay(
    client: &mut TcpStream,
    server: &mut TcpStream,
    live: &Live,
    head: Vec<u8>,
) -> PlainEnd {
    live.count_sent(head.len());
    let mut up = Flow { waiting: head, ..Flow::default() };
    let mut down = Flow::default();
    poll_fn(|cx| {
        if let Some(reason) = live.poll_cut(cx) {
            return Poll::Ready(PlainEnd::Cut(reason));
        }
        Scratch::lend(|scratch| {
            for _ in 0..TURNS_PER_POLL {
                let sent = up.poll(cx, client, server, &mut scratch.application);
                let received = down.poll(cx, server, client, &mut scratch.application);
                match (sent, received) {
                    (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => {
                        return Poll::Ready(PlainEnd::Socket(error));
                    }
                    (sent, received) => {
                        if up.finished && down.finished {
                            return Poll::Ready(PlainEnd::Clean);
                        }
                        if sent.is_pending() && received.is_pending() {
                            return Poll::Pending;
                        }
                        live.count_sent(moved(&sent));
                        live.count_received(moved(&received));
                    }
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    })
    .await
}

fn moved(turn: &Poll<io::Result<usize>>) -> usize {
    match turn {
        Poll::Ready(Ok(bytes)) => *bytes,
        Poll::Ready(Err(_)) | Poll::Pending => 0,
    }
}

impl Flow {
    /// One turn; ready with the bytes that were read, which may be none.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if !self.waiting.is_empty() {
            let written = ready!(Pin::new(to).poll_write(cx, &self.waiting))?;
            self.waiting.drain(..written);
            return Poll::Ready(Ok(0));
        }
        if self.finished {
            return Poll::Pending;
        }
        if self.ended {
            ready!(Pin::new(to).poll_shutdown(cx))?;
            self.finished = true;
            return Poll::Ready(Ok(0));
        }
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(from).poll_read(cx, &mut buffer))?;
        let mut bytes = buffer.filled();
        let read = bytes.len();
        self.ended = read == 0;
        while !bytes.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, bytes)? {
                Poll::Ready(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Poll::Pending => break,
            }
        }
        self.waiting = bytes.to_vec();
        Poll::Ready(Ok(read))
    }
}
