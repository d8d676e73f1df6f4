//! The node-wide hooks: attached once per instance, then only ever updated.

use std::{
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use sluice_abi::program;

use crate::{
    Error,
    load::{Loaded, LoadedProgram, PROGRAMS},
    pins::{self, Pins},
    syscall::{self, program::AttachType},
};

/// Returns how a node-wide program is attached; `None` for one that is attached per pod.
pub(crate) fn attach_type(name: &str) -> Option<AttachType> {
    match name {
        program::CONNECT4 => Some(AttachType::CGROUP_INET4_CONNECT),
        program::CONNECT6 => Some(AttachType::CGROUP_INET6_CONNECT),
        program::PEERNAME4 => Some(AttachType::CGROUP_INET4_GETPEERNAME),
        program::PEERNAME6 => Some(AttachType::CGROUP_INET6_GETPEERNAME),
        program::SOCKNAME4 => Some(AttachType::CGROUP_INET4_GETSOCKNAME),
        program::SOCKNAME6 => Some(AttachType::CGROUP_INET6_GETSOCKNAME),
        program::SOCKOPS => Some(AttachType::CGROUP_SOCK_OPS),
        _ => None,
    }
}

/// Attaches the node-wide programs, or puts them under their pinned links.
pub(crate) fn attach(loaded: &Loaded, cgroup: &File, pins: &Pins) -> Result<(), Error> {
    for name in PROGRAMS {
        let Some(attach_type) = attach_type(name) else { continue };
        let program = loaded.program(name)?;
        let pin = pins.hook(name);
        if is_on(&pin, cgroup)? && update(&pin, program)? {
            continue;
        }
        let link = syscall::link::to_fd(program.fd.as_fd(), cgroup.as_fd(), attach_type)
            .map_err(Error::kernel("attach", name))?;
        // The settings have changed: a link to another cgroup goes once this one is there.
        pins::remove_link(&pin)?;
        syscall::pin(link.as_fd(), &pin).map_err(Error::path("pin a link at", pin))?;
    }
    Ok(())
}

/// Whether the link pinned at `path`, if any, is on this cgroup.
fn is_on(path: &Path, cgroup: &File) -> Result<bool, Error> {
    let Some(link) = syscall::open_pin(path).map_err(Error::path("open the pin", path))? else {
        return Ok(false);
    };
    let info =
        syscall::link::info(link.as_fd()).map_err(Error::path("inspect the link at", path))?;
    let id = cgroup.metadata().map_err(Error::kernel("inspect", "the cgroup"))?.ino();
    Ok(info.cgroup() == id)
}

/// Puts a program under the link pinned at `path`. Returns whether there is such a link and it is
/// still attached.
///
/// A link whose cgroup, namespace or interface is gone stays pinned as a shell, which is removed
/// here.
pub(crate) fn update(path: &Path, program: &LoadedProgram) -> Result<bool, Error> {
    let Some(link) = syscall::open_pin(path).map_err(Error::path("open the pin", path))? else {
        return Ok(false);
    };
    match syscall::link::update(link.as_fd(), program.fd.as_fd()) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            std::fs::remove_file(path).map_err(Error::path("unpin", path))?;
            Ok(false)
        }
        Err(error) => Err(Error::path("update the link at", path)(error)),
    }
}

/// Names of the node-wide programs that are not in effect on the cgroup.
pub(crate) fn missing(
    programs: &[LoadedProgram],
    cgroup: BorrowedFd<'_>,
) -> Result<Vec<&'static str>, Error> {
    let mut missing = Vec::new();
    for program in programs {
        let Some(attach_type) = attach_type(program.name) else { continue };
        let effective = syscall::program::query_cgroup(cgroup, attach_type)
            .map_err(Error::kernel("query", program.name))?;
        if !effective.contains(&program.id) {
            missing.push(program.name);
        }
    }
    Ok(missing)
}
