//! Making connections: names to addresses, addresses to a [`Conn`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::{Address, Conn, Host};
use crate::error::{Error, Result};

/// The socket addresses that an address stands for. A literal and `localhost` never touch the resolver.
///
/// # Errors
/// [`Error::NoSuchHost`].
pub(crate) fn lookup(address: &Address) -> Result<Vec<SocketAddr>> {
    let ips = match &address.host {
        Host::Literal(ip) => vec![*ip],
        // IPv4 first: most servers on a board listen there, and a missing one is refused at once.
        Host::Localhost | Host::Any => vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
        Host::Name(name) => {
            let no_such_host = |source| Error::NoSuchHost { host: name.clone(), source };
            let found: Vec<SocketAddr> =
                (name.as_str(), address.port).to_socket_addrs().map_err(no_such_host)?.collect();
            if found.is_empty() {
                return Err(no_such_host(io::ErrorKind::NotFound.into()));
            }
            return Ok(found);
        }
    };
    Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, address.port)).collect())
}

/// Dials the addresses in turn until one answers; each gets its share of `timeout`. `name` is what messages call it.
///
/// # Errors
/// [`Error::Connect`] with the last address's reason, [`Error::Timeout`] when that was silence.
pub(crate) fn dial(name: &str, addresses: &[SocketAddr], timeout: Duration) -> Result<Conn> {
    let share = timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
            Ok(stream) => return Conn::new(stream),
            Err(error) => last = error,
        }
    }
    if last.kind() == io::ErrorKind::TimedOut {
        return Err(Error::Timeout { waiting_for: "the server to answer", after: timeout });
    }
    Err(Error::Connect { address: name.to_owned(), source: last })
}
