//! Byte-exact exchanges: each direction of a connection carries a stream that the other end can compute, and the
//! connection ends in one of TCP's ways.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::pattern::Pattern;
use crate::Netns;

/// The longest piece of a write; streams are cut into pieces of random length.
const MAX_PIECE: u64 = 96 << 10;
/// How long an exchange may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_mins(5);
const HEADER: usize = 25;

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// Both directions at once, each closed when its sender is done.
    Both = 0,
    /// The client sends all and half-closes; only then the server answers.
    ClientFirst = 1,
    /// The server sends all and half-closes; only then the client sends.
    ServerFirst = 2,
    /// The client resets after what it has to send.
    ClientResets = 3,
    /// The server resets after what it has to send.
    ServerResets = 4,
}

/// What servers and clients have found.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections that ended as they should, with every byte right.
    pub exact: AtomicU64,
    /// Bytes compared by servers and clients.
    pub bytes: AtomicU64,
    /// Connections on which a byte or the ending was wrong; the reasons are on standard error.
    pub wrong: AtomicU64,
}

/// One connection's plan.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// The seed of both streams.
    pub seed: u64,
    /// Bytes from client to server.
    pub up: u64,
    /// Bytes from server to client.
    pub down: u64,
    /// How the connection ends.
    pub ending: Ending,
}

// === impl Ending ===

impl Ending {
    /// All endings.
    pub const ALL: [Self; 5] =
        [Self::Both, Self::ClientFirst, Self::ServerFirst, Self::ClientResets, Self::ServerResets];
}

// === impl Exchange ===

impl Exchange {
    /// Plans connection `number`: every ending in turn, sizes up to twice `mean`, some of them empty or tiny.
    pub fn numbered(number: u64, mean: u64) -> Self {
        let mut random = Pattern::new(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let size = |random: &mut Pattern| match random.below(8) {
            0 => random.below(3),
            _ => random.below(mean.saturating_mul(2)),
        };
        let kinds = Ending::ALL.iter().cycle();
        let skipped = usize::try_from(number % 5).unwrap_or(0);
        let ending = kinds.copied().nth(skipped).unwrap_or(Ending::Both);
        Self { seed: random.next_word(), up: size(&mut random), down: size(&mut random), ending }
    }

    fn header(&self) -> [u8; HEADER] {
        let mut header = [self.ending as u8; HEADER];
        let numbers = [self.seed, self.up, self.down].map(u64::to_le_bytes);
        for (slot, byte) in header.iter_mut().zip(numbers.as_flattened()) {
            *slot = *byte;
        }
        header
    }

    fn parse(header: [u8; HEADER]) -> Result<Self> {
        let number = |at: usize| -> Option<u64> {
            header.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
        };
        let kind = *header.last().context("empty header")?;
        let ending = Ending::ALL.into_iter().find(|ending| *ending as u8 == kind);
        Ok(Self {
            seed: number(0).context("short header")?,
            up: number(8).context("short header")?,
            down: number(16).context("short header")?,
            ending: ending.with_context(|| format!("the header is garbled: ending {kind}"))?,
        })
    }
}

/// Runs `exchanges` from inside `netns`, `concurrent` at a time, against a server of
/// [`super::Service::Bytes`] at `target` that shares `tally`.
pub fn exchange_all(
    netns: &Netns,
    target: SocketAddr,
    exchanges: impl IntoIterator<Item = Exchange> + Send,
    concurrent: usize,
    tally: &Arc<Tally>,
) -> Result<()> {
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut running = tokio::task::JoinSet::new();
            for exchange in exchanges {
                if running.len() >= concurrent
                    && let Some(done) = running.join_next().await
                {
                    done??;
                }
                let tally = Arc::clone(tally);
                running.spawn(async move {
                    let outcome = timeout(PATIENCE, client(target, exchange, &tally)).await;
                    outcome
                        .with_context(|| format!("{exchange:?} hangs"))?
                        .with_context(|| format!("client of {exchange:?}"))
                });
            }
            while let Some(done) = running.join_next().await {
                done??;
            }
            Ok(())
        })
    })
}

async fn client(target: SocketAddr, exchange: Exchange, tally: &Tally) -> Result<()> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    writer.write_all(&exchange.header()).await?;
    // A reset may overtake data, including the header that tells the server what to expect.
    let mut known = [0];
    reader.read_exact(&mut known).await.context("the server's word that it has the header")?;
    let (up, down) = (stream_of(exchange.seed, 1), stream_of(exchange.seed, 2));
    match exchange.ending {
        Ending::Both => {
            let sending = send(&mut writer, up, exchange.up, Finish::Close);
            let receiving = receive(&mut reader, down, exchange.down, tally);
            let (sent, received) = tokio::join!(sending, receiving);
            sent.and(received)
        }
        Ending::ClientFirst => {
            send(&mut writer, up, exchange.up, Finish::Close).await?;
            receive(&mut reader, down, exchange.down, tally).await
        }
        Ending::ServerFirst => {
            receive(&mut reader, down, exchange.down, tally).await?;
            send(&mut writer, up, exchange.up, Finish::Close).await
        }
        Ending::ClientResets => {
            send(&mut writer, up, exchange.up, Finish::Leave).await?;
            reset(reader, writer)
        }
        Ending::ServerResets => receive_until_reset(&mut reader, down, exchange.down, tally).await,
    }
}

pub(super) async fn serve(mut stream: TcpStream, tally: &Tally) -> Result<()> {
    let mut header = [0_u8; HEADER];
    stream.read_exact(&mut header).await?;
    stream.write_all(b"!").await?;
    let outcome = match Exchange::parse(header) {
        Ok(exchange) => {
            answer(stream, exchange, tally).await.with_context(|| format!("server of {exchange:?}"))
        }
        Err(error) => Err(error),
    };
    match &outcome {
        Ok(()) => tally.exact.fetch_add(1, Ordering::Relaxed),
        Err(error) => {
            crate::cleanup::report(&format!("{error:#}"));
            tally.wrong.fetch_add(1, Ordering::Relaxed)
        }
    };
    outcome
}

async fn answer(stream: TcpStream, exchange: Exchange, tally: &Tally) -> Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let (up, down) = (stream_of(exchange.seed, 1), stream_of(exchange.seed, 2));
    match exchange.ending {
        Ending::Both => {
            let sending = send(&mut writer, down, exchange.down, Finish::Close);
            let receiving = receive(&mut reader, up, exchange.up, tally);
            let (sent, received) = tokio::join!(sending, receiving);
            sent.and(received)
        }
        Ending::ClientFirst => {
            receive(&mut reader, up, exchange.up, tally).await?;
            send(&mut writer, down, exchange.down, Finish::Close).await
        }
        Ending::ServerFirst => {
            send(&mut writer, down, exchange.down, Finish::Close).await?;
            receive(&mut reader, up, exchange.up, tally).await
        }
        Ending::ClientResets => receive_until_reset(&mut reader, up, exchange.up, tally).await,
        Ending::ServerResets => {
            send(&mut writer, down, exchange.down, Finish::Leave).await?;
            reset(reader, writer)
        }
    }
}

fn stream_of(seed: u64, direction: u64) -> Pattern {
    Pattern::new(seed.rotate_left(17).wrapping_add(direction.wrapping_mul(0x1234_5678_9abc_def1)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Finish {
    /// Half-close.
    Close,
    /// Leave the direction open: something else follows.
    Leave,
}

async fn send(
    writer: &mut OwnedWriteHalf,
    mut stream: Pattern,
    total: u64,
    finish: Finish,
) -> Result<()> {
    let mut sizes = Pattern::new(total.wrapping_add(99));
    let mut piece = Vec::new();
    let mut left = total;
    while left > 0 {
        let length = (1 + sizes.below(MAX_PIECE)).min(left);
        piece.resize(usize::try_from(length)?, 0);
        stream.fill(&mut piece);
        let at = total - left;
        writer.write_all(&piece).await.with_context(|| format!("send at byte {at} of {total}"))?;
        left -= length;
    }
    if finish == Finish::Close {
        writer.shutdown().await.context("half-close")?;
    }
    Ok(())
}

async fn receive(
    reader: &mut OwnedReadHalf,
    stream: Pattern,
    total: u64,
    tally: &Tally,
) -> Result<()> {
    let (got, end) = compare(reader, stream, tally).await?;
    end.with_context(|| format!("after {got} bytes of {total}"))?;
    ensure!(got == total, "{got} bytes arrived before the end, {total} were sent");
    Ok(())
}

/// Receives until a reset. A reset may overtake data, so a prefix of the stream is right; a clean end is not.
async fn receive_until_reset(
    reader: &mut OwnedReadHalf,
    stream: Pattern,
    total: u64,
    tally: &Tally,
) -> Result<()> {
    match compare(reader, stream, tally).await? {
        (got, Err(error)) if error.kind() == ErrorKind::ConnectionReset => {
            ensure!(got <= total, "{got} bytes arrived, {total} were sent");
            Ok(())
        }
        (got, end) => bail!("the other end reset, this end saw {end:?} after {got} bytes"),
    }
}

/// Reads to the end and returns the number of bytes and how it ended. Fails only on a wrong byte.
async fn compare(
    reader: &mut OwnedReadHalf,
    mut stream: Pattern,
    tally: &Tally,
) -> Result<(u64, std::io::Result<()>)> {
    let mut buffer = vec![0; 1 << 16];
    let mut scratch = Vec::new();
    let mut got = 0;
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => return Ok((got, Ok(()))),
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                ensure!(stream.matches(bytes, &mut scratch), "wrong bytes after {got}");
                got += u64::try_from(length)?;
                tally.bytes.fetch_add(u64::try_from(length)?, Ordering::Relaxed);
            }
            Err(error) => return Ok((got, Err(error))),
        }
    }
}

fn reset(reader: OwnedReadHalf, writer: OwnedWriteHalf) -> Result<()> {
    let stream = reader.reunite(writer).context("halves of one connection")?;
    stream.set_zero_linger().context("linger")?;
    drop(stream);
    Ok(())
}
