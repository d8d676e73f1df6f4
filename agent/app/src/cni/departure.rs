//! How an agent's time on its node ends, for those who have to know: by an uninstallation, or by another agent.

use std::sync::atomic::{AtomicBool, Ordering};

/// Shared by the control loop, which decides, and the desk, which answers the plugin and its keeper.
#[derive(Debug, Default)]
pub(crate) struct Departure {
    under_way: AtomicBool,
    plugin_is_out: AtomicBool,
    replaced: AtomicBool,
}

// === impl Departure ===

impl Departure {
    /// The node's pods leave the mesh for good, or do not any more.
    pub(crate) fn set_under_way(&self, under_way: bool) {
        self.under_way.store(under_way, Ordering::Release);
        self.plugin_is_out.fetch_and(under_way, Ordering::AcqRel);
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire)
    }

    /// Notes whether the plugin is in the node's network lists.
    pub(crate) fn plugin_is(&self, present: bool) {
        self.plugin_is_out.store(!present, Ordering::Release);
    }

    /// Whether the keeper of the plugin has said that it is in none of the lists any more.
    pub(crate) fn is_plugin_out(&self) -> bool {
        self.plugin_is_out.load(Ordering::Acquire)
    }

    /// Another agent takes the node over, or has failed to.
    pub(crate) fn set_replaced(&self, replaced: bool) {
        self.replaced.store(replaced, Ordering::Release);
    }

    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }
}
