//! Programs on a host veth: attached by a tcx link, or as a clsact filter where there is no tcx.
//!
//! A tcx link is pinned and updated like all others. A filter has no link: it stays until it is
//! removed or the interface goes, and is recognised by its priority and handle.

use std::{
    ffi::CStr,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
};
use sluice_abi::program;

use crate::{
    Error, hooks,
    load::LoadedProgram,
    pins::Pins,
    syscall::{self, program::AttachType},
};

/// Puts our filter before all others, since an earlier one could let a packet through.
const PRIORITY: u16 = 1;
/// Distinguishes our filter from others of the same priority.
const HANDLE: TcHandle = TcHandle::new(0, 0x51ce);

/// A program on a pod's host veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// Judges what comes out of the pod.
    Guard,
    /// Recognises probes among what goes in.
    Probe,
}

impl Filter {
    const ALL: [Self; 2] = [Self::Guard, Self::Probe];

    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::Guard => program::GUARD,
            Self::Probe => program::PROBE,
        }
    }

    const fn tcx(self) -> AttachType {
        match self {
            Self::Guard => AttachType::TCX_INGRESS,
            Self::Probe => AttachType::TCX_EGRESS,
        }
    }

    const fn clsact(self) -> TcAttachType {
        match self {
            Self::Guard => TcAttachType::Ingress,
            Self::Probe => TcAttachType::Egress,
        }
    }

    /// Where the program's tcx link is pinned.
    pub(crate) fn pin(self, pins: &Pins, cookie: u64, ifindex: u32) -> PathBuf {
        match self {
            Self::Guard => pins.guard(cookie, ifindex),
            Self::Probe => pins.probe(cookie, ifindex),
        }
    }

    fn failed(
        self,
        action: &'static str,
        ifindex: u32,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::Filter { program: self.program(), action, ifindex, source: source.into() }
    }
}

/// Attaches a program by a tcx link, or puts it under the link that is pinned at `pin`.
pub(crate) fn attach_tcx(
    filter: Filter,
    program: &LoadedProgram,
    ifindex: u32,
    pin: &Path,
) -> Result<(), Error> {
    if hooks::update(pin, program)? {
        return Ok(());
    }
    let link = syscall::link::to_interface(program.fd.as_fd(), ifindex, filter.tcx())
        .map_err(|source| filter.failed("attach", ifindex, source))?;
    syscall::pin(link.as_fd(), pin).map_err(Error::path("pin a link at", pin))
}

/// Attaches a program as a filter, or replaces ours. The caller's thread must be in the
/// namespace of the interface.
pub(crate) fn attach_clsact(filter: Filter, ebpf: &mut Ebpf, ifindex: u32) -> Result<(), Error> {
    let name = interface_name(filter, ifindex)?;
    if let Err(error) = tc::qdisc_add_clsact(&name) {
        // Usually clsact is there already. If it is really missing, attaching fails and says so.
        tracing::debug!(ifindex, %error, "clsact not added");
    }
    let classifier = classifier(filter, ebpf)?;
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let side = filter.clsact();
    let attached = classifier
        .attach_with_options(&name, side, TcAttachOptions::Netlink(options))
        .or_else(|error| {
            // Our filter is there, from an earlier agent: replace its program.
            let link = SchedClassifierLink::attached(&name, side, PRIORITY, HANDLE, None)
                .map_err(|_gone| error)?;
            classifier.attach_to_link(link)
        })
        .map_err(|source| filter.failed("attach", ifindex, source))?;
    let link =
        classifier.take_link(attached).map_err(|source| filter.failed("keep", ifindex, source))?;
    // Dropping the link would detach the filter, which must outlive the agent.
    std::mem::forget(link);
    Ok(())
}

/// Removes our filters from an interface, if the interface is still there and has them.
pub(crate) fn detach_all_clsact(ifindex: u32) -> Result<(), Error> {
    Filter::ALL.into_iter().try_for_each(|filter| detach_clsact(filter, ifindex))
}

/// Removes one of our filters from an interface, if the interface is still there and has it.
pub(crate) fn detach_clsact(filter: Filter, ifindex: u32) -> Result<(), Error> {
    let Ok(name) = interface_name(filter, ifindex) else { return Ok(()) };
    match tc::qdisc_detach_program(&name, filter.clsact(), filter.program()) {
        Ok(()) => Ok(()),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(filter.failed("detach", ifindex, source)),
    }
}

/// Whether our program is attached to the interface by a tcx link.
pub(crate) fn has_tcx(
    filter: Filter,
    program: &LoadedProgram,
    ifindex: u32,
) -> Result<bool, Error> {
    match syscall::program::query(ifindex, filter.tcx(), 0) {
        Ok(programs) => Ok(programs.contains(&program.id)),
        Err(error) if gone_or_empty(&error) => Ok(false),
        Err(source) => Err(filter.failed("query", ifindex, source)),
    }
}

/// Whether our filter is on the interface. This adds the filter once more, which fails if it is
/// there; if it succeeds, the new filter is removed again.
pub(crate) fn has_clsact(filter: Filter, ebpf: &mut Ebpf, ifindex: u32) -> Result<bool, Error> {
    let Ok(name) = interface_name(filter, ifindex) else { return Ok(false) };
    let classifier = classifier(filter, ebpf)?;
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let options = TcAttachOptions::Netlink(options);
    match classifier.attach_with_options(&name, filter.clsact(), options) {
        Ok(added) => {
            let detached = classifier.detach(added);
            detached.map_err(|source| filter.failed("query", ifindex, source))?;
            Ok(false)
        }
        Err(error) => Ok(is_exists(&error)),
    }
}

fn classifier(filter: Filter, ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, Error> {
    let name = filter.program();
    let program = ebpf.program_mut(name).ok_or(Error::Incomplete(name))?;
    program.try_into().map_err(|source| Error::Verify { program: name, source: Box::new(source) })
}

fn gone_or_empty(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Whether netlink returned `EEXIST`. aya shows the error number only in the chain of the error's
/// sources.
fn is_exists(error: &ProgramError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.raw_os_error() == Some(libc::EEXIST))
        {
            return true;
        }
        source = error.source();
    }
    false
}

fn interface_name(filter: Filter, ifindex: u32) -> Result<String, Error> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the `IF_NAMESIZE` bytes that the call may write.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if found.is_null() {
        let source = io::Error::last_os_error();
        return Err(filter.failed("find the interface for", ifindex, source));
    }
    let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}
