//! Places for connections. One that has proved nothing is in nobody's way: it has its place for a short time, and
//! when places run out the oldest of its kind is closed instead of a new one not being accepted.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tokio::{sync::oneshot, time::Sleep};

use crate::server::Limits;

/// All places, and who has them.
#[derive(Debug)]
pub(crate) struct Places {
    limits: Limits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// By age, oldest first.
    connections: BTreeMap<u64, Connection>,
    next: u64,
}

#[derive(Debug)]
struct Connection {
    address: IpAddr,
    has_proved: bool,
    /// Dropped, it closes the connection.
    _open: oneshot::Sender<()>,
}

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Place {
    proof: Proof,
    closed: oneshot::Receiver<()>,
    /// When the connection must have proved itself.
    deadline: Pin<Box<Sleep>>,
    is_closed: bool,
}

/// Tells that whoever is at the other end has proved who it is.
#[derive(Clone, Debug)]
pub(crate) struct Proof {
    places: Arc<Places>,
    number: u64,
}

// === impl Places ===

impl Places {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, taken: Mutex::default() })
    }

    /// A place for a new connection from `peer`, if need be that of an older one which has proved nothing yet;
    /// `None` when all have.
    pub(crate) fn take(self: &Arc<Self>, peer: SocketAddr) -> Option<Place> {
        let Limits { connections, connections_per_address, unproved, unproved_per_network, .. } =
            self.limits;
        let address = peer.ip().to_canonical();
        let network = network(address);
        let mut taken = self.taken();
        let has_room = taken.make_room(connections_per_address, |held| held.address == address)
            && taken.make_room(unproved_per_network, |held| {
                !held.has_proved && self::network(held.address) == network
            })
            && taken.make_room(unproved, |held| !held.has_proved)
            && taken.make_room(connections, |_| true);
        if !has_room {
            return None;
        }
        let (open, closed) = oneshot::channel();
        let number = taken.next;
        taken.next += 1;
        taken.connections.insert(number, Connection { address, has_proved: false, _open: open });
        drop(taken);
        let proof = Proof { places: Arc::clone(self), number };
        let deadline = Box::pin(tokio::time::sleep(self.limits.proof));
        Some(Place { proof, closed, deadline, is_closed: false })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Taken ===

impl Taken {
    /// Whether there are fewer than `limit` of this kind, or the oldest of them that has proved nothing was closed.
    fn make_room(&mut self, limit: usize, is_kind: impl Fn(&Connection) -> bool) -> bool {
        if self.connections.values().filter(|held| is_kind(held)).count() < limit {
            return true;
        }
        let mut oldest = self.connections.iter();
        let oldest = oldest.find(|(_, held)| !held.has_proved && is_kind(held));
        let oldest = oldest.map(|(number, _)| *number);
        oldest.is_some_and(|number| self.connections.remove(&number).is_some())
    }
}

// === impl Place ===

impl Place {
    pub(crate) fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Ready once the connection is to be closed.
    pub(crate) fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // A channel that has said it once may not be asked again.
        self.is_closed = self.is_closed
            || Pin::new(&mut self.closed).poll(context).is_ready()
            || (self.deadline.as_mut().poll(context).is_ready() && !self.proof.was_given());
        if self.is_closed { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Proof { places, number } = &self.proof;
        places.taken().connections.remove(number);
    }
}

// === impl Proof ===

impl Proof {
    /// The connection has proved itself: from now on it keeps its place.
    pub(crate) fn give(&self) {
        if let Some(connection) = self.places.taken().connections.get_mut(&self.number) {
            connection.has_proved = true;
        }
    }

    fn was_given(&self) -> bool {
        self.places.taken().connections.get(&self.number).is_some_and(|held| held.has_proved)
    }
}

/// What one owner has addresses of in abundance: of IPv6 the upper half (RFC 4291, 2.5.4), of IPv4 each for itself.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    fn limits() -> Limits {
        Limits {
            connections: 8,
            connections_per_address: 4,
            unproved: 5,
            unproved_per_network: 3,
            ..Limits::default()
        }
    }

    fn from(address: &str) -> SocketAddr {
        (address.parse::<IpAddr>().unwrap(), 1).into()
    }

    async fn is_closed(place: &mut Place) -> bool {
        tokio::time::timeout(Duration::ZERO, poll_fn(|context| place.poll_closed(context)))
            .await
            .is_ok()
    }

    /// Takes places one after another; which of them are still open then?
    async fn open(places: &Arc<Places>, addresses: &[&str], proved: &[usize]) -> Vec<usize> {
        let mut all = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            let place = places.take(from(address));
            if let Some(place) = place.as_ref().filter(|_| proved.contains(&number)) {
                place.proof().give();
            }
            all.push(place);
        }
        let mut open = Vec::new();
        for (number, place) in all.iter_mut().enumerate() {
            if let Some(place) = place
                && !is_closed(place).await
            {
                open.push(number);
            }
        }
        open
    }

    #[tokio::test]
    async fn the_oldest_that_has_proved_nothing_makes_room_and_no_other() {
        let places = Places::new(limits());
        let one = ["10.0.0.1"; 6];
        assert_eq!(open(&places, &one, &[]).await, [3, 4, 5], "of one network");
        assert_eq!(open(&places, &one, &[0, 1]).await, [0, 1, 4, 5], "of one address");
        assert_eq!(open(&places, &one, &[0, 1, 2, 3, 4]).await, [0, 1, 2, 3], "none made room");
        let many: Vec<_> = (0..7).map(|last| format!("10.0.0.{last}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(open(&places, &many, &[0]).await, [0, 2, 3, 4, 5, 6], "of all");
        let many: Vec<_> = (0..10).map(|last| format!("10.0.0.{last}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let proved: Vec<_> = (0..7).collect();
        assert_eq!(open(&places, &many, &proved).await, [0, 1, 2, 3, 4, 5, 6, 9]);
        assert!(places.taken().connections.is_empty(), "all have been given back");
    }

    #[tokio::test]
    async fn addresses_of_one_ipv6_network_are_one_owners() {
        let places = Places::new(limits());
        let addresses = ["fd00::1", "fd00::2", "fd00::ffff:0:0:3", "fd00::4", "fd00:0:0:1::1"];
        assert_eq!(open(&places, &addresses, &[]).await, [1, 2, 3, 4]);
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), IpAddr::from([10, 0, 0, 1]));
    }

    #[tokio::test]
    async fn who_proves_nothing_in_time_is_closed() {
        let places = Places::new(Limits { proof: Duration::from_millis(10), ..limits() });
        let [mut silent, mut proved] =
            [1, 2].map(|port| places.take((IpAddr::from([10, 0, 0, 1]), port).into()).unwrap());
        proved.proof().give();
        poll_fn(|context| silent.poll_closed(context)).await;
        assert!(is_closed(&mut silent).await, "whenever it is asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!is_closed(&mut proved).await);
    }
}
