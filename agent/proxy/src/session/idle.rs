//! A session between its streams: whether it may carry another, and what is left of its handshake.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use sluice_sys::tcp::TcpStream;
use tokio::task::yield_now;

use super::{Broken, MAX_AHEAD, Session};
use crate::{scratch::Scratch, spares::Purpose};

impl Session {
    /// Returns whether a session that was put away may still carry a stream. Tickets may have arrived since its last
    /// one; anything else can only be the peer's farewell, which makes it unusable. Within this process, a server may
    /// have ended it without a farewell.
    pub(crate) fn is_usable(&mut self) -> bool {
        if self.closed || !self.unread.is_empty() || !self.decoder.is_between_frames() {
            return false;
        }
        Scratch::lend(|scratch| {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            loop {
                match self.poll_receive(&mut cx, scratch) {
                    Poll::Pending => {
                        return !self.link.as_ref().is_some_and(|link| link.has_ended());
                    }
                    Poll::Ready(Ok(())) if scratch.plaintext.is_empty() && !self.closed => {}
                    Poll::Ready(_) => return false,
                }
            }
        })
    }

    /// Whether something has been received that is still to be looked at.
    pub(crate) fn holds_input(&self) -> bool {
        !self.unread.is_empty() || !self.partial.is_empty()
    }

    /// Whether the peer may be long from done with what it was sent: an application that reads slowly, and had ended
    /// before. Another stream would wait for that.
    pub(crate) fn is_far_ahead(&self) -> bool {
        self.ahead > MAX_AHEAD
    }

    /// Whether its tickets, for which a burst of connections waits, are still to be received.
    pub(crate) fn awaits_tickets(&self) -> bool {
        self.channel.awaits_tickets()
    }

    /// Receives the tickets that have arrived, which a stream that is opened in memory leaves unread.
    pub(crate) async fn take_tickets(&mut self) {
        if !self.awaits_tickets() {
            return;
        }
        // The runtime has to notice first that they have arrived.
        yield_now().await;
        // Whatever else has arrived is kept for the next use of the session; a failure shows again then.
        poll_fn(|cx| match Scratch::lend(|scratch| self.poll_answer(cx, scratch)) {
            Poll::Ready(()) | Poll::Pending => Poll::Ready(()),
        })
        .await;
    }

    /// Sends what the handshake has left, and receives the tickets that answer it.
    pub(crate) async fn settle(&mut self) -> Result<(), Broken> {
        poll_fn(|cx| self.poll_flush(cx)).await?;
        poll_fn(|cx| {
            Scratch::lend(|scratch| {
                while self.awaits_tickets() {
                    ready!(self.poll_receive(cx, scratch))?;
                    if !scratch.plaintext.is_empty() {
                        return Poll::Ready(Err(Broken::NoStream));
                    }
                }
                Poll::Ready(Ok(()))
            })
        })
        .await
    }

    /// Takes the session for a stream: if it was a spare, it is none any more.
    pub(crate) fn begin_use(&mut self) {
        if matches!(self.purpose, Some(Purpose::Spare { .. })) {
            self.purpose = None;
        }
    }

    /// Moves the session to the runtime of the calling worker.
    pub(crate) fn rehome(self) -> io::Result<Self> {
        Ok(Self { tcp: TcpStream::from_std(self.tcp.into_std())?, ..self })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::timeout;

    use super::*;
    use crate::testing::{PATIENCE, session_pair, sessions};

    #[tokio::test]
    async fn a_session_that_settles_has_its_tickets_and_nothing_left_to_send() {
        let (mut near, mut far) = sessions(&Arc::default(), &Arc::default()).await;
        assert!(near.awaits_tickets());
        far.try_flush().await.unwrap();
        timeout(PATIENCE, near.settle()).await.unwrap().unwrap();
        assert!(!near.awaits_tickets() && near.queued() == 0 && near.is_usable());
    }

    #[tokio::test]
    async fn a_peer_that_speaks_before_it_is_asked_breaks_a_session_that_settles() {
        let (mut near, mut far) = session_pair().await;
        far.queue(&sluice_wire::Control::end()).unwrap();
        far.try_flush().await.unwrap();
        let broken = timeout(PATIENCE, near.settle()).await.unwrap().unwrap_err();
        assert!(matches!(broken, Broken::NoStream), "{broken}");
    }
}
