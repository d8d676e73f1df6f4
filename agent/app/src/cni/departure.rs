//! How an agent's time on its node ends: by an uninstallation, or because another agent takes over.

use std::sync::atomic::{AtomicBool, Ordering};

/// State shared by the control loop, which decides, and the desk, which answers the plugin and its keeper.
#[derive(Debug, Default)]
pub(crate) struct Departure {
    under_way: AtomicBool,
    plugin_is_out: AtomicBool,
    replaced: AtomicBool,
}

// === impl Departure ===

impl Departure {
    /// Notes whether the node's pods are leaving the mesh for good.
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

    /// Returns whether the plugin's keeper has said that none of the lists names the plugin any more.
    pub(crate) fn is_plugin_out(&self) -> bool {
        self.plugin_is_out.load(Ordering::Acquire)
    }

    /// Notes whether another agent is taking the node over.
    pub(crate) fn set_replaced(&self, replaced: bool) {
        self.replaced.store(replaced, Ordering::Release);
    }

    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }
}
