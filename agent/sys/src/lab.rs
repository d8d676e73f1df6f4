//! Real namespaces for the tests of this crate.

use std::{
    path::PathBuf,
    process::{self, Command},
};

use crate::Netns;

/// A namespace that is deleted when dropped.
pub(crate) struct Namespace(String);

impl Namespace {
    /// Makes `name` unique to this process. Panics without root, because a test that is silently
    /// skipped looks like one that passed.
    pub(crate) fn new(name: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "run these tests as root");
        let name = format!("ss{}-{name}", process::id());
        ip(&format!("netns add {name}"));
        Self(name)
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    pub(crate) fn open(&self) -> Netns {
        Netns::open(self.path()).unwrap()
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// Runs `ip` on the namespace.
    pub(crate) fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.0));
    }

    /// A veth pair between `link` here and `peer` in another namespace.
    pub(crate) fn veth(&self, link: &str, peer: &str, other: &Self) {
        self.ip(&format!("link add {link} type veth peer name {peer} netns {}", other.0));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.0));
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
