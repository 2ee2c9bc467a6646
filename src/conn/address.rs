//! Addresses as people write them: `host`, `host:port`, `192.0.2.1:7117`, `[2001:db8::1]:7117`, `::1`, `:7117`.
//!
//! Nothing is looked up here.

use std::net::{IpAddr, Ipv6Addr};

use crate::config::DEFAULT_PORT;
use crate::error::{Error, Result};

/// Where to listen or to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

/// The machine an [`Address`] names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// None was named: all addresses, for a listener.
    Any,
    /// A literal address: never looked up.
    Literal(IpAddr),
    /// `localhost`, which needs no lookup.
    Localhost,
    /// A name to look up.
    Name(String),
}

impl Address {
    /// Reads an address; the port is 7117 when none is named.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub(crate) fn parse(text: &str) -> Result<Address> {
        let wrong = || Error::Argument {
            what: "address",
            got: text.to_owned(),
            expected: "HOST, HOST:PORT, IPV4:PORT or [IPV6]:PORT",
        };
        if let Ok(literal) = text.parse::<Ipv6Addr>() {
            return Ok(Address { host: Host::Literal(IpAddr::V6(literal)), port: DEFAULT_PORT });
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (literal, port) = rest.split_once(']').ok_or_else(wrong)?;
            let literal = literal.parse::<Ipv6Addr>().map_err(|_| wrong())?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(wrong)?) };
            (Host::Literal(IpAddr::V6(literal)), port)
        } else {
            match text.split_once(':') {
                Some((host, port)) => (Host::parse(host).ok_or_else(wrong)?, Some(port)),
                None => (Host::parse(text).ok_or_else(wrong)?, None),
            }
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().map_err(|_| wrong())?,
            Some(_) => return Err(wrong()),
        };
        Ok(Address { host, port })
    }
}

impl Host {
    fn parse(text: &str) -> Option<Host> {
        if text.is_empty() || text == "*" {
            return Some(Host::Any);
        }
        if let Ok(literal) = text.parse::<IpAddr>() {
            return Some(Host::Literal(literal));
        }
        if text.eq_ignore_ascii_case("localhost") {
            return Some(Host::Localhost);
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) || !byte.is_ascii();
        (text.len() <= 253 && text.bytes().all(fits)).then(|| Host::Name(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_is_understood() {
        let literal = |text: &str| Host::Literal(text.parse().unwrap());
        for (text, host, port) in [
            ("h", Host::Name("h".into()), 7117),
            ("h:1", Host::Name("h".into()), 1),
            ("LocalHost:1", Host::Localhost, 1),
            ("127.0.0.1:0", literal("127.0.0.1"), 0),
            ("[::1]:65535", literal("::1"), 65535),
            ("[::1]", literal("::1"), 7117),
            ("::1", literal("::1"), 7117),
            (":9", Host::Any, 9),
            ("*:9", Host::Any, 9),
            ("", Host::Any, 7117),
        ] {
            assert_eq!(Address::parse(text).unwrap(), Address { host, port }, "{text}");
        }
    }

    #[test]
    fn an_address_that_means_nothing_is_refused() {
        for text in ["h:", "h:x", "h:65536", "h:+1", "[::1", "[::1]9", "[h]:1", "a b", "h/x", "user@h", "1:2:3"] {
            // A port with no digits would be port 0: nobody means that.
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
