//! Carries bytes between two sockets as they are: to and from peers outside the mesh, and between two
//! pods of this agent.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use sluice_sys::tcp::TcpStream;
use sluice_wire::ResetReason;
use tokio::io::AsyncWrite;

use crate::{live::Live, relay::Side, scratch::Scratch};

/// Turns of both directions in one poll, before other connections of the worker get theirs.
const TURNS_PER_POLL: usize = 8;

/// How a connection carried as plain bytes ended.
#[derive(Debug)]
pub(crate) enum PlainEnd {
    /// Both directions ended.
    Clean,
    /// The socket on this side failed, or was reset.
    Socket(Side, io::Error),
    /// It was ended from outside.
    Cut(ResetReason),
}

/// One direction: what was read and not yet written, and whether the end was reached and passed on.
#[derive(Debug)]
struct Flow {
    sender: Side,
    waiting: Vec<u8>,
    ended: bool,
    finished: bool,
}

/// Carries bytes both ways until both directions have ended. `head` was already read from `client`. Each of `lives`
/// counts the bytes and can end the connection.
pub(crate) async fn relay(
    client: &mut TcpStream,
    server: &mut TcpStream,
    lives: &[&Live],
    head: Vec<u8>,
) -> PlainEnd {
    count(lives, Side::Client, head.len());
    let mut up = Flow::new(Side::Client, head);
    let mut down = Flow::new(Side::Server, Vec::new());
    poll_fn(|cx| {
        if let Some(reason) = lives.iter().find_map(|live| live.poll_cut(cx)) {
            return Poll::Ready(PlainEnd::Cut(reason));
        }
        Scratch::lend(|scratch| {
            for _ in 0..TURNS_PER_POLL {
                let sent = up.poll(cx, client, server, &mut scratch.application);
                let received = down.poll(cx, server, client, &mut scratch.application);
                count(lives, Side::Client, moved(&sent));
                count(lives, Side::Server, moved(&received));
                match (sent, received) {
                    (Poll::Ready(Err((side, error))), _) | (_, Poll::Ready(Err((side, error)))) => {
                        return Poll::Ready(PlainEnd::Socket(side, error));
                    }
                    _ if up.finished && down.finished => return Poll::Ready(PlainEnd::Clean),
                    (Poll::Pending, Poll::Pending) => return Poll::Pending,
                    _ => {}
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    })
    .await
}

fn count(lives: &[&Live], sender: Side, bytes: usize) {
    if bytes == 0 {
        return;
    }
    for live in lives {
        match sender {
            Side::Client => live.count_sent(bytes),
            Side::Server => live.count_received(bytes),
        }
    }
}

/// Bytes that were read, or the socket that failed and how.
type Turn = Result<usize, (Side, io::Error)>;

fn moved(turn: &Poll<Turn>) -> usize {
    match turn {
        Poll::Ready(Ok(bytes)) => *bytes,
        Poll::Ready(Err(_)) | Poll::Pending => 0,
    }
}

impl Flow {
    fn new(sender: Side, waiting: Vec<u8>) -> Self {
        Self { sender, waiting, ended: false, finished: false }
    }

    /// Takes one turn. Ready with the number of bytes that were read, which may be 0.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        buffer: &mut [u8],
    ) -> Poll<Turn> {
        let (sender, receiver) = (self.sender, self.sender.other());
        if !self.waiting.is_empty() {
            let written = ready!(Pin::new(to).poll_write(cx, &self.waiting))
                .map_err(|error| (receiver, error))?;
            self.waiting.drain(..written);
            if self.waiting.is_empty() {
                self.waiting = Vec::new();
            }
            return Poll::Ready(Ok(0));
        }
        if self.finished {
            return Poll::Pending;
        }
        if self.ended {
            ready!(Pin::new(to).poll_shutdown(cx)).map_err(|error| (receiver, error))?;
            self.finished = true;
            return Poll::Ready(Ok(0));
        }
        let read = ready!(from.poll_receive(cx, buffer)).map_err(|error| (sender, error))?;
        let mut bytes = buffer.get(..read).unwrap_or_default();
        self.ended = read == 0;
        while !bytes.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, bytes) {
                Poll::Ready(Ok(written)) => bytes = bytes.get(written..).unwrap_or_default(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err((receiver, error))),
                Poll::Pending => break,
            }
        }
        self.waiting = bytes.to_vec();
        Poll::Ready(Ok(read))
    }
}

#[cfg(test)]
mod tests;
