//! A captured connection to another pod of this agent, which is opened by a call and carried in memory.

use std::{future::poll_fn, task::Poll};

use sluice_sys::tcp::TcpStream;
use sluice_wire::ResetReason;
use tokio::time::timeout;

use super::{CONNECT_TIME, Captured, Failure, ending::complete};
use crate::{
    closing,
    live::Live,
    local::{Delivered, Found, Local},
    plain::{self, PlainEnd},
    pool::Key,
    relay::Side,
    returning::Return,
    session::Session,
    shared::Shared,
    turns::Turn,
};

/// What came of an attempt to open a stream in memory.
#[expect(clippy::large_enum_variant, reason = "taken apart as soon as it is returned")]
pub(super) enum Near {
    Opened(Delivered),
    /// The session was over: the stream needs another.
    Ended,
    /// The stream is for the session to carry.
    Elsewhere(Session),
}

impl Captured {
    /// Waits for this connection's turn to be opened, if its destination is on the same node.
    pub(super) async fn turn<'a>(
        &self,
        shared: &'a Shared,
        key: &'a Key,
    ) -> Result<Option<Turn<'a>>, Failure> {
        if !self.near {
            return Ok(None);
        }
        let turn = timeout(CONNECT_TIME, shared.openings.wait(key)).await;
        turn.map(Some).map_err(|_elapsed| Failure::AgentTimeout(key.destination))
    }

    /// Opens a stream, if the other end of the session is in this process.
    pub(super) async fn near_stream(
        &self,
        live: &Live,
        mut session: Session,
        key: &Key,
        ending: &Return<'_>,
    ) -> Result<Near, Failure> {
        let Some(link) = session.link.clone() else { return Ok(Near::Elsewhere(session)) };
        // The session is free again in a moment: others should wait for it instead of making one.
        ending.announce();
        let found = match timeout(CONNECT_TIME, link.host(&mut session, live)).await {
            Ok(Found::Nothing) => return Ok(Near::Elsewhere(session)),
            Ok(Found::Ended) => Ok(None),
            Ok(Found::Host(host)) if !host.is_there(&self.worker) => Ok(None),
            Ok(Found::Host(host)) => {
                let cut = poll_fn(|cx| live.poll_cut(cx).map_or(Poll::Pending, Poll::Ready));
                let delivered = host.let_in(&self.worker, self.client, cut).await;
                delivered.map(Some).map_err(Failure::Ended)
            }
            Ok(Found::Cut(reason)) => Err(Failure::Ended(reason)),
            Err(_elapsed) => Err(Failure::AgentTimeout(key.destination)),
        };
        if let Ok(Some(delivered)) = found {
            self.worker.put_session(&self.pod, key.clone(), session);
            return Ok(Near::Opened(delivered));
        }
        session.close();
        found.map(|_none| Near::Ended)
    }

    /// Carries a stream between two pods of this agent.
    pub(super) async fn local_stream(&mut self, live: &Live, local: Local) -> Result<(), Failure> {
        let Local { delivered, head } = local;
        let far = delivered.live;
        far.set_local();
        live.set_local();
        let end = match TcpStream::from_std(delivered.application) {
            Ok(mut server) => {
                let lives = [live, &*far];
                let end = plain::relay(&mut self.application, &mut server, &lives, head).await;
                if matches!(end, PlainEnd::Clean) {
                    closing::in_order(&server);
                }
                end
            }
            Err(error) => PlainEnd::Socket(Side::Server, error),
        };
        let (near, other) = match end {
            PlainEnd::Clean => (Ok(()), Ok(())),
            PlainEnd::Socket(side, error) => {
                let (own, told) =
                    (Failure::Application(error), Failure::Ended(ResetReason::Application));
                if side == Side::Client { (Err(own), Err(told)) } else { (Err(told), Err(own)) }
            }
            PlainEnd::Cut(reason) => (Err(Failure::Ended(reason)), Err(Failure::Ended(reason))),
        };
        complete(&self.worker.shared.snapshot(), &far, other);
        near
    }
}
