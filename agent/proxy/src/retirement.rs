//! A last phase: that of a worker, where what is open goes on and nothing new begins, or of a pod that goes.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// The beginning of a worker's retirement, to be asked about or waited for.
#[derive(Debug, Default)]
pub(crate) struct Retirement {
    has_begun: AtomicBool,
    waiting: Notify,
}

// === impl Retirement ===

impl Retirement {
    pub(crate) fn begin(&self) {
        self.has_begun.store(true, Ordering::Release);
        self.waiting.notify_waiters();
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }

    pub(crate) async fn begun(&self) {
        // Made before the flag is read: it then hears of a beginning in between.
        let waiting = self.waiting.notified();
        if !self.has_begun() {
            waiting.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_waits_and_who_comes_later_hears_of_it() {
        let retirement = Retirement::default();
        let mut early = Box::pin(retirement.begun());
        assert!((&mut early).now_or_never().is_none() && !retirement.has_begun());
        retirement.begin();
        early.await;
        retirement.begun().await;
        assert!(retirement.has_begun());
    }
}
