//! Ends a stream that an application has reset, without ending its session.
//!
//! Clients reset connections every day: they have what they need, or lose patience. Each end says exactly one last
//! word per stream, END or RESET. An end that resets says RESET and passes over what comes until the other's last
//! word. An end that hears RESET answers with its own last word, if it has not said it. An end that has said END and
//! finds its application gone before the peer's last word cannot say RESET any more, which could be taken for the
//! next stream's: then the session ends.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
    time::Duration,
};

use sluice_wire::{Control, Event, ResetReason};
use tokio::time::timeout;

use super::{Incoming, Outcome, Relay, Resetter};
use crate::{scratch::Scratch, session::Broken};

/// How long the last words may take before the session is ended instead: many round trips, but a short time for an
/// application on the other side that waits to be reset.
const PARTING_TIME: Duration = Duration::from_secs(1);
/// How many bytes may come before the peer's last word: what fits into the buffers of a connection. A peer that sends
/// more has not heard us.
const MAX_PASSED_OVER: usize = 16 << 20;

impl Relay<'_> {
    /// Ends the stream whose application has gone.
    pub(super) async fn part(&mut self, error: io::Error) -> Outcome {
        if self.has_last_words().await {
            Outcome::Reset(Resetter::Own(error))
        } else {
            Outcome::Application(error)
        }
    }

    /// Ends the stream that the peer's application has reset.
    pub(super) async fn answer_parting(&mut self) -> Outcome {
        if self.has_last_words().await {
            Outcome::Reset(Resetter::Peer)
        } else {
            Outcome::Peer(ResetReason::Application)
        }
    }

    /// Exchanges last words. Returns whether both ends have said theirs, which leaves the session free.
    async fn has_last_words(&mut self) -> bool {
        if self.sending {
            self.sending = false;
            if let Some(ending) = self.ending {
                ending.announce();
            }
            if self.session.queue(&Control::reset(ResetReason::Application)).is_err() {
                return false;
            }
        } else if self.incoming == Incoming::Open {
            return false;
        }
        let mut passed_over = 0;
        let last_words = poll_fn(|cx| {
            Scratch::lend(|scratch| self.poll_last_words(cx, scratch, &mut passed_over))
        });
        matches!(timeout(PARTING_TIME, last_words).await, Ok(Ok(true)))
    }

    /// Ready with whether the peer has said its last word, or goes on as if it had not heard ours.
    fn poll_last_words(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        passed_over: &mut usize,
    ) -> Poll<Result<bool, Broken>> {
        let flushed = self.session.poll_flush(cx)?;
        while self.incoming == Incoming::Open {
            ready!(self.session.poll_receive(cx, scratch))?;
            *passed_over += scratch.plaintext.len();
            if *passed_over > MAX_PASSED_OVER {
                return Poll::Ready(Ok(false));
            }
            self.pass_over(&scratch.plaintext)?;
        }
        flushed.map(|()| Ok(true))
    }

    fn pass_over(&mut self, mut plaintext: &[u8]) -> Result<(), Broken> {
        while let Some(event) = self.session.decoder.next(&mut plaintext)? {
            match event {
                Event::Data(_) => {}
                Event::End | Event::Reset(_) => {
                    self.incoming = Incoming::Told;
                    self.session.unread = plaintext.to_vec();
                    break;
                }
                Event::Open(_) => return Err(Broken::UnexpectedOpen),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
