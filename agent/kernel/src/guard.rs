//! The guard's attachment to a host veth: a tcx link, or a clsact filter where there is no tcx.
//!
//! A tcx link is pinned and updated like all others. A filter has no link: it stays until it is
//! taken away or the interface goes, and is known again by its priority and handle.

use std::{ffi::CStr, io, os::fd::AsFd, path::Path};

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
    syscall::{self, program::AttachType},
};

/// First of all filters, since a filter before ours could let a packet through.
const PRIORITY: u16 = 1;
/// Tells our filter from others of the same priority.
const HANDLE: TcHandle = TcHandle::new(0, 0x51ce);

/// Attaches the guard by a tcx link, or puts it under the link pinned at `pin`.
pub(crate) fn attach_tcx(program: &LoadedProgram, ifindex: u32, pin: &Path) -> Result<(), Error> {
    if hooks::update(pin, program)? {
        return Ok(());
    }
    let link = syscall::link::to_interface(program.fd.as_fd(), ifindex, AttachType::TCX_INGRESS)
        .map_err(|source| Error::Filter { action: "attach", ifindex, source: source.into() })?;
    syscall::pin(link.as_fd(), pin).map_err(Error::path("pin a link at", pin))
}

/// Attaches the guard as a filter, or replaces ours. The caller's thread must be in the
/// namespace of the interface.
pub(crate) fn attach_clsact(ebpf: &mut Ebpf, ifindex: u32) -> Result<(), Error> {
    let failed =
        |action, source: ProgramError| Error::Filter { action, ifindex, source: source.into() };
    let name = interface_name(ifindex)?;
    if let Err(error) = tc::qdisc_add_clsact(&name) {
        // Attaching tells whether it is really missing; most often it is just there already.
        tracing::debug!(ifindex, %error, "clsact not added");
    }
    let classifier = classifier(ebpf)?;
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let attached = classifier
        .attach_with_options(&name, TcAttachType::Ingress, TcAttachOptions::Netlink(options))
        .or_else(|error| {
            // Ours is there, from the agent before this one: replace the program in it.
            let link =
                SchedClassifierLink::attached(&name, TcAttachType::Ingress, PRIORITY, HANDLE, None)
                    .map_err(|_gone| error)?;
            classifier.attach_to_link(link)
        })
        .map_err(|source| failed("attach", source))?;
    let link = classifier.take_link(attached).map_err(|source| failed("keep", source))?;
    // Dropping it would detach the filter, which is to outlive the agent.
    std::mem::forget(link);
    Ok(())
}

/// Takes our filter from an interface, if the interface is still there and has it.
pub(crate) fn detach_clsact(ifindex: u32) -> Result<(), Error> {
    let Ok(name) = interface_name(ifindex) else { return Ok(()) };
    match tc::qdisc_detach_program(&name, TcAttachType::Ingress, program::GUARD) {
        Ok(()) => Ok(()),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Filter { action: "detach", ifindex, source: source.into() }),
    }
}

/// Whether our program runs on the interface's ingress by a tcx link.
pub(crate) fn has_tcx(program: &LoadedProgram, ifindex: u32) -> Result<bool, Error> {
    match syscall::program::query(ifindex, AttachType::TCX_INGRESS, 0) {
        Ok(programs) => Ok(programs.contains(&program.id)),
        Err(error) if gone_or_empty(&error) => Ok(false),
        Err(source) => Err(Error::Filter { action: "query", ifindex, source: source.into() }),
    }
}

/// Whether our filter is on the interface's ingress. The kernel is asked by adding it once more,
/// which fails if it is there; one that could be added is taken away again.
pub(crate) fn has_clsact(ebpf: &mut Ebpf, ifindex: u32) -> Result<bool, Error> {
    let Ok(name) = interface_name(ifindex) else { return Ok(false) };
    let classifier = classifier(ebpf)?;
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    match classifier.attach_with_options(
        &name,
        TcAttachType::Ingress,
        TcAttachOptions::Netlink(options),
    ) {
        Ok(added) => {
            let detached = classifier.detach(added);
            detached.map_err(|source| Error::Filter {
                action: "query",
                ifindex,
                source: source.into(),
            })?;
            Ok(false)
        }
        Err(error) => Ok(is_exists(&error)),
    }
}

fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, Error> {
    let program = ebpf.program_mut(program::GUARD).ok_or(Error::Incomplete(program::GUARD))?;
    program
        .try_into()
        .map_err(|source| Error::Verify { program: program::GUARD, source: Box::new(source) })
}

fn gone_or_empty(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Whether netlink said `EEXIST`; aya keeps the error's number to its source's text.
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

fn interface_name(ifindex: u32) -> Result<String, Error> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the `IF_NAMESIZE` bytes that the call may write.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if found.is_null() {
        let source = io::Error::last_os_error();
        return Err(Error::Filter { action: "find", ifindex, source: source.into() });
    }
    let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}
