//! Policies are taken over one by one, and one that cannot be read harms its own namespace alone.

use sluice_mesh::WorkloadUid;
use sluice_policy::{Connection, MtlsMode, Verdict};

use crate::world::{SHOP, World, pod};

fn policy(kind: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\nkind: {kind}\nmetadata: {{namespace: {namespace}, name: p, uid: x}}\nspec: {spec}\n"
    )
}

fn allows(world: &World) -> bool {
    let member = world.snapshot().member(&WorkloadUid("a".into())).unwrap();
    let connection = Connection {
        principal: None,
        source: "10.0.0.9".parse().unwrap(),
        destination: "10.0.0.1:80".parse().unwrap(),
    };
    member.policy.decide(&connection) == Verdict::Allow
}

fn mode(world: &World) -> MtlsMode {
    world.snapshot().member(&WorkloadUid("a".into())).unwrap().policy.mode(80)
}

#[test]
fn policies_bind_the_pods_of_their_namespace_and_the_roots_bind_all() {
    let mut world = World::new(&(SHOP.to_owned() + &pod("a", "10.0.0.1", ["", "", ""])));
    assert!(allows(&world) && mode(&world) == MtlsMode::Permissive);
    world.apply(&policy("AuthorizationPolicy", "other", "{}"));
    assert!(allows(&world));
    world.apply(&policy("AuthorizationPolicy", "shop", "{}"));
    assert!(!allows(&world));
    world.delete(&policy("AuthorizationPolicy", "shop", "{}"));
    assert!(allows(&world));
    world.apply(&policy("PeerAuthentication", "istio-system", "{mtls: {mode: STRICT}}"));
    assert_eq!(mode(&world), MtlsMode::Strict);
    let pods: Vec<_> = world.view().policies.iter().map(ToString::to_string).collect();
    assert!(pods.is_empty(), "{pods:?}");
}

/// Returns why the newest version of the only policy is not in force.
fn refusal(world: &World) -> Option<String> {
    let [only] = &*world.view().standings else { panic!("{:?}", world.view().standings) };
    only.refused.as_ref().map(ToString::to_string)
}

#[test]
fn a_bad_version_keeps_the_good_one_and_without_one_the_namespace_is_closed() {
    let mut world = World::new(&(SHOP.to_owned() + &pod("a", "10.0.0.1", ["", "", ""])));
    let allow = policy("AuthorizationPolicy", "shop", "{rules: [{}]}");
    world.apply(&allow);
    assert!(allows(&world));
    let bad = policy("AuthorizationPolicy", "shop", "{rulez: []}");
    world.apply(&bad);
    assert!(allows(&world));
    assert!(refusal(&world).unwrap().contains("its last good version stays in force"));
    assert!(world.findings().is_empty(), "it is said twice: {:?}", world.findings());
    world.delete(&bad);
    world.apply(&bad);
    assert!(!allows(&world));
    assert!(refusal(&world).unwrap().contains("no good version is known"));
    world.apply(&allow);
    assert!(allows(&world) && refusal(&world).is_none());
}
