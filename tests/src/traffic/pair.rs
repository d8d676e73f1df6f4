//! Both ends of one connection in the test's own hands.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::Netns;

/// An open connection of two applications that have both said something.
#[derive(Debug)]
pub struct Pair {
    /// The end that connected.
    pub client: TcpStream,
    /// The end that accepted.
    pub server: TcpStream,
}

impl Pair {
    /// Listens at `target` in the server's namespace, connects from the client's, and sends a byte each way.
    pub fn open(client: &Netns, server: &Netns, target: SocketAddr) -> Result<Self> {
        let listener = server.run(|| Ok(TcpListener::bind(target)?))?;
        let mut client = client.run(|| Ok(TcpStream::connect(target)?))?;
        client.write_all(b"?")?;
        let (mut server, _) = listener.accept()?;
        let mut byte = [0];
        server.read_exact(&mut byte)?;
        server.write_all(b"!")?;
        client.read_exact(&mut byte)?;
        Ok(Self { client, server })
    }
}

/// Fails unless the connection ends by a reset within that time: a clean end would be a lie.
pub fn ensure_reset(end: &mut TcpStream, within: Duration) -> Result<()> {
    end.set_read_timeout(Some(within))?;
    let read = end.read(&mut [0]);
    let is_reset = matches!(&read, Err(error) if error.kind() == ErrorKind::ConnectionReset);
    ensure!(is_reset, "not reset: {read:?}");
    Ok(())
}
