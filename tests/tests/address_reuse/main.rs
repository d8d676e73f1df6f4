//! Addresses pass from pod to pod at once, while the agents learn of it late and in the wrong order. Yet no connection
//! has a wrong identity at either end, and none is made that policy forbids between those who are there.
//!
//! Each place has a pair of addresses, one of each family. Pods of several identities, and some outside the mesh,
//! follow each other there. The agent of the place's own node knows at once, as a CNI plugin tells it. The other agent
//! hears of each departure and arrival after a random time, so it may believe in a pod that is gone, in nobody, or in
//! an earlier pod again. Meanwhile everybody calls everybody.

mod callers;
mod houses;
mod verdict;
mod views;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{Family, Lab, MeshFile, NodeName, World, full_size, policies};

use self::{
    callers::Calls,
    houses::{ACCOUNTS, Dice, Houses, may_call},
    verdict::Verdict,
    views::Views,
};

/// Threads that replace pods; each has places of its own.
const MOVERS: usize = 6;
const CALLERS: usize = 12;
/// The longest time, in milliseconds, that a pod lives once it serves.
const MOST_STAY: u64 = 1_200;
/// How long an agent that has been told everything may take to apply it.
const SETTLE: Duration = Duration::from_secs(15);

/// Returns the policies: `STRICT`, and each account may be called by itself and by the next one.
fn rules() -> Vec<(String, String)> {
    let mut files = vec![("mtls.yaml".to_owned(), policies::peer_authentication("STRICT"))];
    for server in ACCOUNTS {
        let callers: Vec<&str> =
            ACCOUNTS.into_iter().filter(|client| may_call(client, server)).collect();
        files.push((format!("{server}.yaml"), policies::allow(server, &callers)));
    }
    files
}

/// Replaces pods until `total` have been made, while everybody calls everybody.
fn churn(houses: &Houses<'_>, views: &Views<'_>, calls: &Calls, total: usize) -> Result<()> {
    let (left, over) = (AtomicUsize::new(total), AtomicBool::new(false));
    thread::scope(|scope| {
        let messenger = scope.spawn(|| views.deliver(&over));
        let callers = (0..CALLERS)
            .map(|seed| {
                scope.spawn({
                    let over = &over;
                    move || calls.keep_calling(houses, Dice(seed as u64), over)
                })
            })
            .collect::<Vec<_>>();
        let movers = (0..MOVERS)
            .map(|mover| {
                scope.spawn({
                    let left = &left;
                    move || move_pods(houses, mover, left)
                })
            })
            .collect::<Vec<_>>();
        let moved = movers.into_iter().map(joined).collect::<Vec<_>>();
        over.store(true, Ordering::Relaxed);
        let called = callers.into_iter().map(joined).collect::<Vec<_>>();
        moved.into_iter().chain(called).chain([joined(messenger)]).collect()
    })
}

fn joined(thread: thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().map_err(|_panic| anyhow::anyhow!("a thread of the test panicked"))?
}

fn move_pods(houses: &Houses<'_>, mover: usize, left: &AtomicUsize) -> Result<()> {
    let mut dice = Dice(mover as u64 + 100);
    let mine: Vec<usize> = (mover..houses.count()).step_by(MOVERS).collect();
    for place in mine.into_iter().cycle() {
        let more =
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if more.is_err() {
            break;
        }
        houses.pass_on(place, &mut dice)?;
        thread::sleep(Duration::from_millis(dice.next() % MOST_STAY));
    }
    Ok(())
}

/// Waits until all pods reach exactly those that they may.
fn ensure_all_know(houses: &Houses<'_>, calls: &Calls) -> Result<()> {
    let start = Instant::now();
    let places = 0..houses.count();
    let pairs = places.clone().flat_map(|from| places.clone().map(move |to| (from, to)));
    for (from, to) in pairs.filter(|(from, to)| from != to) {
        for family in Family::BOTH {
            let (client, server) = (houses.tenant(from), houses.tenant(to));
            let (client, server) = client.zip(server).context("nobody lives there")?;
            let expected = client.may_reach(&server).then(|| server.name.clone());
            loop {
                let answer = calls.call(houses, from, to, family)?;
                if answer == expected {
                    break;
                }
                ensure!(
                    start.elapsed() < SETTLE,
                    "{} ({}) to {} ({}) after {SETTLE:?}: {answer:?}",
                    client.name,
                    client.account,
                    server.name,
                    server.account
                );
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
    Ok(())
}

#[test]
fn no_connection_has_a_wrong_identity_while_addresses_change_hands() -> Result<()> {
    let pods = if full_size() { 1_000 } else { 150 };
    let rules = rules();
    let rules: Vec<_> = rules.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut lab = Lab::start_apart(World::builder().build()?, MeshFile::default(), &rules)?;
    let (calls, start) = (Calls::default(), Instant::now());
    let everybody = {
        let views = Views::new(&lab);
        let houses = Houses::new(&lab, &views);
        churn(&houses, &views, &calls, pods)?;
        println!("{pods} pods in {:?}", start.elapsed());
        houses.tell_truth()?;
        ensure_all_know(&houses, &calls)?;
        houses.everybody()
    };
    ensure!(everybody.len() == pods, "{} pods", everybody.len());
    let mut logs = BTreeMap::new();
    for node in NodeName::BOTH {
        let agent = lab.agent(node)?;
        // Once an agent has ended, it has written every line.
        let log = {
            agent.process()?.terminate(Duration::from_secs(15))?;
            agent.process()?.log()
        };
        logs.insert(node, log);
    }
    let calls = calls.made();
    let verdict = Verdict::of(&calls, &everybody, &logs)?;
    let Verdict { wrongs, .. } = &verdict;
    println!("{} calls: {verdict:?}", calls.len());
    ensure!(wrongs.is_empty(), "{} wrong: {:?}", wrongs.len(), wrongs.first());
    // With fewer of them, nothing was put to the test.
    let least = pods / 5;
    for (what, count) in [
        ("proved", verdict.proved),
        ("within one agent", verdict.local),
        ("whose client the server's agent did not know", verdict.server_misled),
        ("refused by a client's agent that believed in somebody else", verdict.client_misled),
        ("refused by the certificate", verdict.unmasked),
        ("forbidden", verdict.forbidden),
        ("of strangers", verdict.strangers),
    ] {
        ensure!(count >= least, "only {count} connections {what}: {verdict:?}");
    }
    Ok(())
}
