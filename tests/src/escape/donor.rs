//! A socket made in another control group (or under another user) and handed to a pod.
//!
//! Hooks on a cgroup follow the group in which a socket was *made*, so a donor outside an agent's
//! cgroup would hand out sockets that no hook sees.

use std::{
    fs,
    io::{IoSlice, IoSliceMut, Write as _},
    mem::MaybeUninit,
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cleanup::{Guard, Undo};
use crate::{Canary, Pod, Process, World, agent::sibling, privilege::cgroup_root};

/// Asks a donor process, in a control group of its own inside `pod`'s namespace, for a socket of
/// `target`'s family.
pub fn receive_from_other_cgroup(world: &World, pod: &Pod, target: SocketAddr) -> Result<Socket> {
    let group = cgroup_root()?.join(format!("{}-donor-{}", world.id(), target.is_ipv6()));
    let _group = Guard::new(Undo::ControlGroup(group.clone()));
    fs::create_dir_all(&group)?;
    let path = world.directory().join("donor.sock");
    let listener = UnixListener::bind(&path)?;
    let mut command = Command::new(sibling("sluice-lab")?);
    command.arg("donate-socket").arg("--to").arg(&path).arg("--cgroup").arg(&group);
    if target.is_ipv6() {
        command.arg("--ipv6");
    }
    let donor = Process::start(world.directory(), &pod.netns, "donor", command)?;
    let (stream, _) = listener.accept()?;
    let socket = receive(&stream)?;
    drop(donor);
    fs::remove_file(&path)?;
    Ok(socket.into())
}

/// Enters the group, makes a socket and hands it over: the donor's side.
pub fn donate(to: &Path, cgroup: &Path, ipv6: bool) -> Result<()> {
    let members = cgroup.join("cgroup.procs");
    fs::write(&members, std::process::id().to_string())
        .with_context(|| format!("enter {}", members.display()))?;
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    let stream = UnixStream::connect(to)?;
    let descriptors = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&stream, &[IoSlice::new(b"!")], &mut control, SendFlags::empty())?;
    Ok(())
}

/// Connects with a donated socket from inside `pod` and sends the canary.
pub fn send_with(socket: &Socket, pod: &Pod, target: SocketAddr, canary: &Canary) -> Result<()> {
    pod.run(|| {
        socket.set_write_timeout(Some(super::PATIENCE))?;
        socket.connect_timeout(&target.into(), super::PATIENCE)?;
        let mut writer = socket;
        writer.write_all(canary.as_bytes())?;
        super::linger(socket)
    })
}

fn receive(stream: &UnixStream) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return descriptors.next().context("the donor sent an empty list");
        }
    }
    anyhow::bail!("the donor sent no socket")
}
