//! Read-only globals that the loader sets. The verifier knows their values and removes code that they rule
//! out.

use aya_ebpf::Global;

/// Whether a connect hook may choose the error (Linux 5.18).
#[unsafe(no_mangle)]
pub(crate) static HAS_SET_RETVAL: Global<u8> = Global::new(0);

/// Whether a subflow's MPTCP socket can be found (Linux 5.19).
#[unsafe(no_mangle)]
pub(crate) static HAS_MPTCP: Global<u8> = Global::new(0);

/// Whether a tunable is set.
#[inline(always)]
pub(crate) fn is_set(tunable: &Global<u8>) -> bool {
    tunable.load() != 0
}
