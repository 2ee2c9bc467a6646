//! Taking connections in: one listening socket, dual-stack where IPv6 is there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{
    bind, ipproto, listen, shutdown, socket_with, sockopt, AddressFamily, Shutdown, SocketFlags, SocketType,
};

use super::{lookup, Address, Host};
use crate::config::LISTEN_BACKLOG;
use crate::error::{Error, Result};

/// A listening socket.
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    /// Of a socket that others hold too: readable when it is to be left alone.
    leave: Option<OwnedFd>,
}

impl Listener {
    /// Listens. Without a host: on all addresses, IPv6 and IPv4 on one socket, or IPv4 alone where there is no IPv6.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::NoSuchHost`].
    pub(crate) fn bind(address: &Address) -> Result<Listener> {
        let listener = match &address.host {
            Host::Any => listen_on(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port))
                .or_else(|_| listen_on(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port))),
            _ => {
                let mut result = Err(io::ErrorKind::NotFound.into());
                for candidate in lookup(address)? {
                    result = listen_on(candidate);
                    if result.is_ok() {
                        break;
                    }
                }
                result
            }
        };
        let listener = listener.map_err(Error::system("listen"))?;
        let address = listener.local_addr().map_err(Error::system("listen"))?;
        Ok(Listener { listener, address, leave: None })
    }

    /// Takes connections from a socket that listens already and that others go on with afterwards.
    ///
    /// # Errors
    /// [`Error::Argument`] when it is something else, [`Error::System`].
    pub(crate) fn adopt(listener: TcpListener) -> Result<Listener> {
        let address = listener.local_addr().ok().filter(|_| socket_acceptconn(&listener) == Ok(true));
        let Some(address) = address else {
            let got = "something else".to_owned();
            return Err(Error::Argument { what: "listener", got, expected: "a listening TCP socket" });
        };
        // Another process may take a connection between the poll and the accept.
        listener.set_nonblocking(true).map_err(Error::system("listen"))?;
        let leave = eventfd(0, EventfdFlags::CLOEXEC).map_err(Error::system("listen"))?;
        Ok(Listener { listener, address, leave: Some(leave) })
    }

    /// Waits for the next connection.
    pub(crate) fn accept(&self) -> io::Result<TcpStream> {
        loop {
            if let Some(leave) = &self.leave {
                let mut wanted = [PollFd::new(leave, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
                match poll(&mut wanted, None) {
                    Err(Errno::INTR) => continue,
                    result => result?,
                };
                let [leave, _] = wanted;
                if !leave.revents().is_empty() {
                    return Err(io::ErrorKind::NotConnected.into());
                }
            }
            match self.listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(|(stream, _)| stream),
            }
        }
    }

    /// The address listened on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes [`Listener::accept`] fail, now and from now on.
    pub(crate) fn close(&self) {
        // A shutdown would end it for all who hold it.
        let _ = match &self.leave {
            Some(leave) => rustix::io::write(leave, &1_u64.to_ne_bytes()).map(drop),
            None => shutdown(&self.listener, Shutdown::Both),
        };
    }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // Linux has a switch for the default; a wildcard socket takes IPv4 too only when we say so.
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    bind(&socket, &address)?;
    listen(&socket, LISTEN_BACKLOG)?;
    Ok(TcpListener::from(socket))
}
