//! What a stream comes to whose session has failed: the peer may have said why, which waits to be read.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use sluice_wire::Event;
use tokio::time::timeout;

use super::{Outcome, Relay, Side};
use crate::{scratch::Scratch, session::Broken};

/// How long a socket that has failed may take to say what it had received before.
const LAST_WORD_TIME: Duration = Duration::from_secs(1);

impl Relay<'_> {
    /// The outcome of a stream whose session is `broken`. The peer's kernel answers what comes after its agent has
    /// closed the socket by a reset, which a write meets before anybody has read what the agent said last.
    pub(super) async fn explain(&mut self, broken: Broken) -> Outcome {
        let said = if matches!(broken, Broken::Closed) {
            self.farewell()
        } else if matches!(broken, Broken::Socket(_)) {
            let said = poll_fn(|cx| Scratch::lend(|scratch| self.poll_last_said(cx, scratch)));
            timeout(LAST_WORD_TIME, said).await.unwrap_or_default()
        } else {
            None
        };
        said.unwrap_or(Outcome::Broken(broken))
    }

    fn poll_last_said(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<Option<Outcome>> {
        loop {
            match ready!(self.session.poll_receive(cx, scratch)) {
                Ok(()) => {}
                Err(Broken::Closed) => return Poll::Ready(self.farewell()),
                Err(_) => return Poll::Ready(None),
            }
            let mut plaintext = &scratch.plaintext[..];
            loop {
                match self.session.decoder.next(&mut plaintext) {
                    Ok(Some(Event::Reset(reason))) => {
                        return Poll::Ready(Some(Outcome::Peer(reason)));
                    }
                    Ok(Some(Event::Data(_) | Event::End | Event::Open(_))) => self.commit(),
                    Ok(None) => break,
                    Err(_) => return Poll::Ready(None),
                }
            }
        }
    }

    /// A peer that says farewell before it has said anything else has not seen the stream.
    fn farewell(&self) -> Option<Outcome> {
        if self.committed {
            return None;
        }
        // Whoever carries it counts it again.
        match self.from {
            Side::Client => self.live.take_back_sent(self.taken),
            Side::Server => self.live.take_back_received(self.taken),
        }
        Some(Outcome::Unseen)
    }
}
