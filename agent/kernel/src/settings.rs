//! How one instance of the datapath is set up.

use std::path::PathBuf;

use sluice_abi::ABI_VERSION;

use crate::Error;

/// The settings of an instance of the datapath: its name, places and sizes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the instance and of its pin directory; several instances can share a kernel. 1 to 64
    /// of `[a-z0-9.-]`.
    pub instance: String,
    /// Where the BPF filesystem is, or will be mounted.
    pub bpffs: PathBuf,
    /// The cgroup v2 directory whose processes are hooked: the hierarchy's root in production.
    pub cgroup: PathBuf,
    /// Largest number of pods that can be enrolled at once.
    pub max_pods: u32,
    /// Largest number of peers (mesh pods and service addresses) that the kernel can tell apart.
    pub max_peers: u32,
    /// Level of the kernel programs' own diagnostics.
    pub log: LogLevel,
    /// Optional kernel features to do without, as on an older kernel; for testing the fallbacks.
    pub without: Vec<Feature>,
}

impl Settings {
    /// Settings of an instance with the usual places and sizes.
    #[must_use]
    pub fn new(instance: impl Into<String>) -> Self {
        Self {
            instance: instance.into(),
            bpffs: PathBuf::from("/sys/fs/bpf"),
            cgroup: PathBuf::from("/sys/fs/cgroup"),
            max_pods: 1024,
            max_peers: 65_536,
            log: LogLevel::Off,
            without: Vec::new(),
        }
    }

    /// Name of the maps' shape: agents with the same name can adopt each other's maps.
    pub(crate) fn generation(&self) -> String {
        format!("v{ABI_VERSION}-{}-{}", self.max_pods, self.max_peers)
    }

    pub(crate) fn check_instance(instance: &str) -> Result<(), Error> {
        let allowed =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
        let starts_well =
            instance.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if starts_well && instance.len() <= 64 && instance.chars().all(allowed) {
            Ok(())
        } else {
            Err(Error::InstanceName(instance.to_owned()))
        }
    }
}

/// Level of the kernel programs' diagnostics.
///
/// Chosen when the programs are loaded: the verifier removes the code of higher levels. A diagnostic
/// that is off leaves only the load of the level, on the path that would have logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// No diagnostics.
    #[default]
    Off,
    /// Failures inside the hooks.
    Error,
    /// Also refused connections and packets.
    Warn,
    /// Nothing more yet; for symmetry with the agent's levels.
    Info,
    /// Also every connection that is captured or steered.
    Debug,
}

impl LogLevel {
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Error => 1,
            Self::Warn => 2,
            Self::Info => 3,
            Self::Debug => 4,
        }
    }
}

/// A kernel feature that has a fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// `tcx` links on interfaces (Linux 6.6).
    Tcx,
    /// `bpf_set_retval` in connect hooks (Linux 5.18).
    SetRetval,
    /// `bpf_skc_to_mptcp_sock` (Linux 5.19).
    Mptcp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_name_is_one_plain_directory() {
        for good in ["node-a", "a", "0.1", "ip-10-0-0-1.ec2.internal"] {
            assert!(Settings::check_instance(good).is_ok(), "{good}");
        }
        for bad in ["", "..", ".a", "-a", "a/b", "A", "a b", &"a".repeat(65)] {
            assert!(Settings::check_instance(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn another_size_is_another_generation() {
        let small = Settings { max_pods: 2, ..Settings::new("a") };
        assert_ne!(Settings::new("a").generation(), small.generation());
    }
}
