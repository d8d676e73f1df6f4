//! What is counted where, and that it is bounded.

use sluice_mesh::{Service, SnapshotBuilder};

use super::*;
use crate::testing::live;

fn snapshot() -> Snapshot {
    Snapshot::empty("cluster.local".parse().unwrap())
}

fn facts(identity: usize) -> Facts {
    let identity = format!("spiffe://cluster.local/ns/a/sa/{identity}").parse().unwrap();
    Facts { source_identity: Some(identity), ..live().facts }
}

#[test]
fn a_connection_adds_up_once_however_often_it_is_asked_about() {
    let table = SeriesTable::new(1);
    let series = table.of(0, &snapshot(), &facts(1));
    let live = Arc::new(Live::of(facts(1), Arc::clone(&series)));
    series.opened();
    live.count_sent(10);
    live.count_received(3);
    for _ in 0..2 {
        table.all(&[Arc::clone(&live)]);
        let open = Sums { opened: 1, sent: 10, received: 3, ..Sums::default() };
        assert_eq!(series.sums().collect::<Vec<_>>(), [open]);
    }
    live.count_sent(5);
    live.end_as(Flags::Deny);
    series.closed(&live);
    let denied = Sums { flags: Flags::Deny, closed: 1, sent: 5, ..Sums::default() };
    assert!(series.sums().any(|sums| sums == denied), "{:?}", series.sums().collect::<Vec<_>>());
    assert_eq!(table.all(&[]).len(), 1);
}

#[test]
fn services_that_share_an_address_are_told_apart() {
    let service = |name: &str, own: &str, balanced: &str| {
        let (addresses, balanced) = (vec![own.parse().unwrap()], vec![balanced.parse().unwrap()]);
        Service { name: name.into(), addresses, balanced, ..Service::default() }.into()
    };
    let services =
        vec![service("a", "10.96.0.1", "192.0.2.7:80"), service("b", "10.96.0.2", "192.0.2.7:81")];
    let builder = SnapshotBuilder { services, ..SnapshotBuilder::default() };
    let snapshot = builder.build("cluster.local".parse().unwrap()).unwrap();
    let table = SeriesTable::new(1);
    let of = |requested: &str| {
        let facts = Facts { requested: requested.parse().unwrap(), ..facts(1) };
        let series = table.of(0, &snapshot, &facts);
        series.labels.service.clone().map(|(_, name)| name)
    };
    let names = ["192.0.2.7:80", "192.0.2.7:81", "192.0.2.7:82"].map(of);
    assert_eq!(names, [Some("a".to_owned()), Some("b".to_owned()), None]);
}

#[test]
fn beyond_the_bound_everything_is_other() {
    let table = SeriesTable::new(2);
    for identity in 0..MAX_SERIES {
        table.of(0, &snapshot(), &facts(identity)).opened();
    }
    let all = table.all(&[]);
    assert_eq!(all.len(), MAX_SERIES / 2 + 1);
    let other = all.iter().find(|series| series.labels.source.principal == OTHER).unwrap();
    let opened = other.sums().map(|sums| sums.opened).sum::<u64>();
    assert_eq!(usize::try_from(opened).unwrap(), MAX_SERIES / 2);
}
