//! Trust domains that only those identities believe whose authority says so.

use std::collections::BTreeSet;

use sluice_spiffe::TrustDomain;

use super::*;
use crate::{MadeKey, Peer, VerifyError, testing::Link};

const SHOP: &str = "spiffe://elsewhere/ns/shop/sa/shop";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// An authority that makes keys, and says which trust domains its workloads federate with.
struct Maker {
    root: Authority,
    federates_with: Mutex<BTreeSet<TrustDomain>>,
}

impl Issuer for Maker {
    fn issue(&self, request: CertRequest) -> Issuing<'_> {
        let leaf = self.root.leaf(request.id.as_str());
        let key = MadeKey::new(leaf.key.serialize_der());
        let chain = IssuedChain { certificates: leaf.chain };
        // Nobody but web federates.
        let is_web = request.id == web();
        let federates_with =
            if is_web { lock(&self.federates_with).clone() } else { BTreeSet::new() };
        Box::pin(async { Ok(Issued::Made { chain, key, federates_with }) })
    }
}

fn elsewhere() -> TrustDomain {
    "elsewhere".parse().unwrap()
}

/// What a client of the trust domain `elsewhere` is to a server here, if it gets through.
fn connect(store: &CertStore, client: &Identity, server: &SpiffeId) -> Result<Peer, String> {
    let server = store.get(server).unwrap();
    let connection = client.client_connection(server.id(), [127, 0, 0, 1].into()).unwrap();
    let mut link = Link::new(connection, server.server_connection().unwrap());
    link.talk().map_err(|(end, error)| format!("{end}: {error}"))?;
    server.peer(&link.server).map_err(|error| error.to_string())
}

#[tokio::test(start_paused = true)]
async fn an_identity_believes_the_trust_domains_that_its_authority_says_for_as_long_as_it_does() {
    let (root, foreign) = (Authority::root("ours"), Authority::root("theirs"));
    let clock = Arc::new(RunningClock { start: Instant::now(), offset: AtomicI64::new(0) });
    let theirs = TrustBundle::new(elsewhere(), [foreign.der()]).unwrap();
    let theirs = theirs.federated(DOMAIN.parse().unwrap(), [root.der()]).unwrap();
    let trust = Trust { bundle: Arc::new(theirs), generation: 0, clock: clock.clone() };
    let client = foreign.leaf(SHOP).identity(trust, None);
    let bundle = root.bundle().offered(elsewhere(), [foreign.der()]).unwrap();
    let maker = Arc::new(Maker { root, federates_with: Mutex::new([elsewhere()].into()) });
    let store = CertStore::new(Settings::default(), maker.clone(), bundle, clock.clone());
    let (shop, cart): (SpiffeId, SpiffeId) = (SHOP.parse().unwrap(), CART.parse().unwrap());
    for id in [&web(), &cart] {
        store.want(id);
        store.wait(id, SOON).await.unwrap();
    }
    assert!(store.believes(&web(), &cart) && store.believes(&cart, &web()));
    assert!(store.believes(&web(), &shop) && !store.believes(&cart, &shop));
    let error = connect(&store, &client, &cart).unwrap_err();
    assert!(error.contains("not of trust domain cluster.local"), "{error}");
    let mut peer = connect(&store, &client, &web()).unwrap();
    assert!(connect(&store, &client, &web()).unwrap().resumed);
    assert_eq!(store.confirm(&mut peer, &web()), Ok(()));

    lock(&maker.federates_with).clear();
    let mut changes = store.roots_changed();
    clock.offset.fetch_add(1900, Ordering::SeqCst);
    changes.changed().await.unwrap();
    assert!(!store.believes(&web(), &shop));
    let refused = store.confirm(&mut peer, &web());
    assert!(matches!(refused, Err(VerifyError::ForeignDomain { .. })), "{refused:?}");
    let error = connect(&store, &client, &web()).unwrap_err();
    assert!(error.contains("not of trust domain cluster.local"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_trust_domain_of_the_configuration_is_believed_by_everybody() {
    let (root, foreign) = (Authority::root("ours"), Authority::root("theirs"));
    let clock = Arc::new(RunningClock { start: Instant::now(), offset: AtomicI64::new(0) });
    let bundle = root.bundle().federated(elsewhere(), [foreign.der()]).unwrap();
    let maker = Arc::new(Maker { root, federates_with: Mutex::default() });
    let store = CertStore::new(Settings::default(), maker, bundle, clock);
    assert!(store.believes(&web(), &SHOP.parse().unwrap()));
}
