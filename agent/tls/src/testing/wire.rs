//! A client and a server joined in memory through rustls' unbuffered interface, driven as the proxy
//! drives it.

use rustls::{
    Error, client::UnbufferedClientConnection, server::UnbufferedServerConnection,
    unbuffered::ConnectionState,
};

use crate::TlsError;

/// Two ends, what is under way between them, and what each has read.
pub(crate) struct Link {
    pub(crate) client: UnbufferedClientConnection,
    pub(crate) server: UnbufferedServerConnection,
    pub(crate) to_server: Vec<u8>,
    pub(crate) to_client: Vec<u8>,
    pub(crate) read_by_server: Vec<u8>,
    pub(crate) read_by_client: Vec<u8>,
}

/// Processes the incoming bytes until the end has to wait; sends `$say` once it may.
macro_rules! turn {
    ($end:expr, $incoming:expr, $outgoing:expr, $read:expr, $say:expr) => {
        loop {
            let status = $end.process_tls_records(&mut $incoming);
            let mut discard = status.discard;
            let mut wait = false;
            match status.state {
                Ok(ConnectionState::EncodeTlsData(mut state)) => {
                    let mut buffer = vec![0; 32 * 1024];
                    let length = state.encode(&mut buffer).unwrap();
                    $outgoing.extend_from_slice(&buffer[..length]);
                }
                Ok(ConnectionState::TransmitTlsData(state)) => state.done(),
                Ok(ConnectionState::ReadTraffic(mut state)) => {
                    while let Some(record) = state.next_record() {
                        let record = record.unwrap();
                        discard += record.discard;
                        $read.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::WriteTraffic(mut state)) => {
                    if let Some(said) = $say.take() {
                        let said: &[u8] = said;
                        let mut buffer = vec![0; said.len() + 1024];
                        let length = state.encrypt(said, &mut buffer).unwrap();
                        $outgoing.extend_from_slice(&buffer[..length]);
                    }
                    wait = true;
                }
                Ok(_) => wait = true,
                Err(error) => break Err(error),
            }
            $incoming.drain(..discard);
            if wait {
                break Ok(());
            }
        }
    };
}

impl Link {
    pub(crate) fn new(
        client: UnbufferedClientConnection,
        server: UnbufferedServerConnection,
    ) -> Self {
        Self {
            client,
            server,
            to_server: Vec::new(),
            to_client: Vec::new(),
            read_by_server: Vec::new(),
            read_by_client: Vec::new(),
        }
    }

    pub(crate) fn client_turn(&mut self, mut say: Option<&[u8]>) -> Result<(), Error> {
        turn!(self.client, self.to_client, self.to_server, self.read_by_client, say)
    }

    pub(crate) fn server_turn(&mut self, mut say: Option<&[u8]>) -> Result<(), Error> {
        turn!(self.server, self.to_server, self.to_client, self.read_by_server, say)
    }

    /// Completes the handshake, tickets included, and passes a word each way. Returns the first
    /// error with the name of the end that found it.
    pub(crate) fn talk(&mut self) -> Result<(), (&'static str, TlsError)> {
        for _ in 0..4 {
            self.client_turn(None).map_err(|error| ("client", error.into()))?;
            self.server_turn(None).map_err(|error| ("server", error.into()))?;
        }
        self.client_turn(Some(b"ping")).map_err(|error| ("client", error.into()))?;
        self.server_turn(Some(b"pong")).map_err(|error| ("server", error.into()))?;
        self.client_turn(None).map_err(|error| ("client", error.into()))?;
        assert_eq!(self.read_by_server, b"ping");
        assert_eq!(self.read_by_client, b"pong");
        Ok(())
    }
}
