//! The kernel programs' own diagnostics.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::Ebpf;
use aya_log::EbpfLogger;

use crate::Error;

/// Reads what the kernel programs log, and passes it to the process's `log` logger (which
/// `tracing-subscriber` bridges to its own).
pub struct Diagnostics {
    readable: OwnedFd,
    drain: Box<dyn FnMut() + Send>,
}

impl Diagnostics {
    /// Takes the programs' ring buffer. Returns `None` if it was taken before.
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Option<Self>, Error> {
        let mut logger = match EbpfLogger::init(ebpf) {
            Ok(logger) => logger,
            Err(aya_log::Error::MapNotFound) => return Ok(None),
            Err(source) => return Err(Error::Diagnostics(Box::new(source))),
        };
        let readable = logger.as_fd().try_clone_to_owned();
        let readable =
            readable.map_err(Error::kernel("duplicate the descriptor of", "the programs' log"))?;
        Ok(Some(Self { readable, drain: Box::new(move || logger.flush()) }))
    }

    /// Passes on all pending log entries; call it when the descriptor is readable.
    pub fn drain(&mut self) {
        (self.drain)();
    }
}

impl AsFd for Diagnostics {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

impl std::fmt::Debug for Diagnostics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Diagnostics")
            .field("readable", &self.readable)
            .finish_non_exhaustive()
    }
}
