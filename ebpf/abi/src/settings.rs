//! Settings of the node that change while the programs run.

use core::mem::{offset_of, size_of};

/// Node-wide settings. No field changes the meaning of another, because a hook may read some before
/// a change and some after it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    flags: u32,
    kubelet_process: u32,
    kubelet_cgroup: u64,
    kubelet_process_until: u64,
    node_cookie: u64,
}

const _: () = {
    assert!(size_of::<Settings>() == 32);
    assert!(offset_of!(Settings, kubelet_process) == 4);
    assert!(offset_of!(Settings, kubelet_cgroup) == 8);
    assert!(offset_of!(Settings, kubelet_process_until) == 16);
    assert!(offset_of!(Settings, node_cookie) == 24);
};

const CAPTURE_ALL: u32 = 1;
const HAS_DIRECT: u32 = 2;

/// How the kernel recognises the kubelet, in addition to the node's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kubelet {
    /// By a cgroup v2 that holds only the kubelet and its children, given as the directory's inode.
    Cgroup(u64),
    /// By its process, if it shares its cgroup with others.
    Process {
        /// Process ID in the initial PID namespace.
        id: u32,
        /// Time of the boot clock, in nanoseconds, from which the ID is no longer believed: another
        /// process may have it by then.
        until: u64,
    },
}

impl Settings {
    /// Sets whether every destination counts as a peer, because not all peers fit into their map.
    #[must_use]
    pub const fn with_capture_all(self, on: bool) -> Self {
        self.with_flag(CAPTURE_ALL, on)
    }

    /// Sets whether there are destinations that every pod reaches without the mesh.
    #[must_use]
    pub const fn with_direct(self, on: bool) -> Self {
        self.with_flag(HAS_DIRECT, on)
    }

    /// Sets the node's own network namespace, by its cookie.
    #[must_use]
    pub const fn with_node_cookie(self, cookie: u64) -> Self {
        Self { node_cookie: cookie, ..self }
    }

    /// Sets who the kubelet is; with `None`, nobody is.
    #[must_use]
    pub const fn with_kubelet(self, kubelet: Option<Kubelet>) -> Self {
        let (cgroup, process, until) = match kubelet {
            None => (0, 0, 0),
            Some(Kubelet::Cgroup(cgroup)) => (cgroup, 0, 0),
            Some(Kubelet::Process { id, until }) => (0, id, until),
        };
        Self {
            kubelet_cgroup: cgroup,
            kubelet_process: process,
            kubelet_process_until: until,
            ..self
        }
    }

    const fn with_flag(self, flag: u32, on: bool) -> Self {
        Self { flags: if on { self.flags | flag } else { self.flags & !flag }, ..self }
    }

    /// Whether every destination counts as a peer.
    #[must_use]
    #[inline(always)]
    pub const fn capture_all(&self) -> bool {
        self.flags & CAPTURE_ALL != 0
    }

    /// Whether some destinations are reached without the mesh.
    #[must_use]
    #[inline(always)]
    pub const fn has_direct(&self) -> bool {
        self.flags & HAS_DIRECT != 0
    }

    /// Whether a network namespace is the node's own.
    #[must_use]
    #[inline(always)]
    pub const fn is_node(&self, cookie: u64) -> bool {
        self.node_cookie != 0 && self.node_cookie == cookie
    }

    /// Whether a task of the node's namespace is the kubelet, by its cgroup or process.
    #[must_use]
    #[inline(always)]
    pub fn is_kubelet(
        &self,
        cgroup: impl FnOnce() -> u64,
        process: impl FnOnce() -> u32,
        now: impl FnOnce() -> u64,
    ) -> bool {
        (self.kubelet_cgroup != 0 && self.kubelet_cgroup == cgroup())
            || (self.kubelet_process != 0
                && self.kubelet_process == process()
                && now() < self.kubelet_process_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_can_be_taken_back_and_leave_the_rest() {
        let both = Settings::default().with_capture_all(true).with_direct(true);
        assert!(both.capture_all() && both.has_direct());
        let one = both.with_capture_all(false);
        assert!(!one.capture_all() && one.has_direct());
    }

    #[test]
    fn nobody_is_the_kubelet_unless_told() {
        let nobody = Settings::default().with_node_cookie(7);
        assert!(nobody.is_node(7) && !nobody.is_node(8) && !Settings::default().is_node(0));
        assert!(!nobody.is_kubelet(|| 0, || 0, || 0));
    }

    #[test]
    fn a_cgroup_or_a_process_in_time_is_the_kubelet() {
        let cgroup = Settings::default().with_kubelet(Some(Kubelet::Cgroup(5)));
        assert!(cgroup.is_kubelet(|| 5, || 0, || u64::MAX));
        assert!(!cgroup.is_kubelet(|| 6, || 0, || 0));
        let process = cgroup.with_kubelet(Some(Kubelet::Process { id: 42, until: 100 }));
        assert!(process.is_kubelet(|| 5, || 42, || 99));
        assert!(!process.is_kubelet(|| 5, || 43, || 99));
        assert!(!process.is_kubelet(|| 5, || 42, || 100), "the number may be another's by now");
        assert!(!process.with_kubelet(None).is_kubelet(|| 5, || 42, || 0));
    }
}
