//! In whatever order events come, a state built step by step equals one built at once.

use std::collections::BTreeMap;

use sluice_mesh::Snapshot;

use crate::world::{SHOP, World, pod};

/// Random numbers by `SplitMix64`: a failure can be repeated from its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    /// Makes an object of few possible names and addresses, so that they clash.
    fn object(&mut self) -> (String, String) {
        match self.roll(8) {
            0 => {
                let mode = ["ambient", "none"][usize::from(self.roll(2) == 0)];
                let label = format!("istio.io/dataplane-mode: {mode}");
                ("ns".into(), SHOP.replace("istio.io/dataplane-mode: ambient", &label))
            }
            1 => {
                let address = self.roll(4);
                let text = format!(
                    "---\nkind: Service\nmetadata: {{namespace: shop, name: web}}\n\
                     spec: {{clusterIPs: [10.0.0.{address}], selector: {{a: b}}, ports: [{{port: 80}}]}}\n"
                );
                ("service".into(), text)
            }
            2 => {
                let (pod, address) = (self.roll(5), self.roll(4));
                let text = format!(
                    "---\nkind: EndpointSlice\nmetadata: {{namespace: shop, name: web-1, labels: \
                     {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 80}}]\n\
                     endpoints: [{{addresses: [10.0.0.{address}], targetRef: {{kind: Pod, uid: p{pod}}}}}]\n"
                );
                ("slice".into(), text)
            }
            3 => {
                let spec = ["{}", "{rules: [{}]}"][usize::from(self.roll(2) == 0)];
                let text = format!(
                    "---\nkind: AuthorizationPolicy\nmetadata: {{namespace: shop, name: p}}\nspec: {spec}\n"
                );
                ("policy".into(), text)
            }
            _ => {
                let name = format!("p{}", self.roll(5));
                let host = ["", "hostNetwork: true"][usize::from(name == "p4")];
                let ending = ["", "deletionTimestamp: '2026-01-01T00:01:00Z'"];
                let ending = ending[usize::from(self.roll(3) == 0)];
                let address = format!("10.0.0.{}", self.roll(4));
                let phase = ["Running", "Running", "Pending", "Failed"];
                let phase = phase[usize::try_from(self.roll(4)).unwrap()];
                let text = pod(&name, &address, [ending, host, ""]).replace("Running", phase);
                // Pods are created in the order of their names.
                (name.clone(), text.replace("01T00:00:00Z", &format!("01T00:00:0{}Z", &name[1..])))
            }
        }
    }
}

fn known(snapshot: &Snapshot) -> String {
    let mut workloads: Vec<_> =
        snapshot.members().iter().map(|member| format!("{:?}", member.workload)).collect();
    workloads.sort();
    let mut protected: Vec<_> = snapshot.protected_addresses().collect();
    protected.sort();
    format!("{workloads:#?} {:#?} {protected:?}", snapshot.services())
}

#[test]
fn steps_and_the_whole_agree() {
    for seed in 0..150 {
        let mut dice = Dice(seed);
        let mut world = World::new("---\nkind: Namespace\nmetadata: {name: shop}\n");
        let mut now = BTreeMap::from([("ns".to_owned(), String::new())]);
        for step in 0..40 {
            let (name, object) = dice.object();
            if name != "ns" && dice.roll(4) == 0 {
                world.delete(&object);
                now.remove(&name);
            } else {
                world.apply(&object);
                now.insert(name, object);
            }
            if step % 8 == 7 {
                let mut objects: String = now.values().map(String::as_str).collect();
                objects += "---\nkind: Node\nmetadata: {name: z}\n";
                if !objects.contains("kind: Namespace") {
                    objects += "---\nkind: Namespace\nmetadata: {name: shop}\n";
                }
                let whole = World::new(&objects);
                let both = (known(world.snapshot()), known(whole.snapshot()));
                assert_eq!(both.0, both.1, "seed {seed}, step {step}\n{objects}");
            }
        }
    }
}
