//! A TCP listener on an address of the configuration.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listens on `address`, in the calling thread's namespace and with its runtime. `[::]` takes IPv4 too, whatever the node's
/// `bindv6only` says, and stands for `0.0.0.0` where the kernel has no IPv6: one default serves clusters of either family.
pub(crate) fn on(address: SocketAddr) -> io::Result<TcpListener> {
    match open(address) {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && has_no_ipv6(&error) => {
            open((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        outcome => outcome,
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The kernel was started without IPv6, or has it switched off in this namespace.
fn has_no_ipv6(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(Errno::AFNOSUPPORT.raw_os_error())
        || code == Some(Errno::ADDRNOTAVAIL.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpStream};

    use super::*;

    #[tokio::test]
    async fn every_address_means_both_families() {
        let listener = on((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in
            [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), (Ipv6Addr::LOCALHOST, port).into()]
        {
            TcpStream::connect(address).unwrap();
        }
    }

    #[tokio::test]
    async fn an_address_that_is_named_is_meant() {
        let taken = on((Ipv4Addr::LOCALHOST, 0).into()).unwrap().local_addr().unwrap();
        assert!(taken.is_ipv4());
        assert!(on("192.0.2.1:0".parse().unwrap()).is_err());
    }
}
