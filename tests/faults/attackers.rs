//! Connections that say what they like and read what they like, each from an address of its own in 127.0.0.0/8, so that what is
//! bounded for one address bounds none of them.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use postwire::wire::{Decoder, Frame, Message, Peer, RunId};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::raw;

/// Short enough that what a server may have under way fills the line when nobody reads.
const SMALL_LINE_BYTES: u32 = 536;

/// One connection to a server.
pub struct Attacker {
    pub stream: TcpStream,
    /// As the server sees it.
    pub address: SocketAddr,
    decoder: Decoder,
    read: Vec<u8>,
}

impl Attacker {
    /// Connects; nothing is said.
    pub fn connect(server: SocketAddr, number: u32) -> io::Result<Attacker> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        let [_, high, middle, low] = (number + 1).to_be_bytes();
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 1 + high, middle, low), 0)).into())?;
        // Small buffers hold little for who does not read.
        socket.set_recv_buffer_size(4096)?;
        socket.set_tcp_mss(SMALL_LINE_BYTES)?;
        socket.set_tcp_nodelay(true)?;
        socket.connect_timeout(&server.into(), Duration::from_secs(10))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
        let address = stream.local_addr()?;
        Ok(Attacker { stream, address, decoder: Decoder::for_client(), read: Vec::new() })
    }

    /// Connects and says hello as the peer that `change` makes of an honest one.
    pub fn join(server: SocketAddr, number: u32, change: impl FnOnce(&mut Peer)) -> io::Result<Attacker> {
        let mut attacker = Attacker::connect(server, number)?;
        let mut run = [0xA7; 16];
        run[..4].copy_from_slice(&number.to_be_bytes());
        let mut peer = raw::honest(RunId(run));
        change(&mut peer);
        attacker.say(&[raw::hello(), Message::Peer(peer)])?;
        loop {
            match attacker.hear()? {
                Message::Named(_) => break,
                Message::Refused { refusal, .. } => return Err(io::Error::other(format!("refused: {refusal:?}"))),
                _ => {}
            }
        }
        attacker.decoder.hello_complete();
        Ok(attacker)
    }

    /// Says messages, whole.
    pub fn say(&mut self, messages: &[Message]) -> io::Result<()> {
        self.stream.write_all(&raw::bytes(messages))
    }

    /// Reads the next message.
    pub fn hear(&mut self) -> io::Result<Message> {
        loop {
            let (taken, frame) = self.decoder.decode(&self.read).map_err(io::Error::other)?;
            self.read.drain(..taken);
            match frame {
                Some(Frame::Message(message)) => return Ok(message),
                Some(_) => continue,
                None => {}
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => self.read.extend_from_slice(&piece[..count]),
            }
        }
    }
}

/// Whom the process that listens on `port` of 127.0.0.1 has a connection to, and how many bytes wait there to be taken by them. What it
/// has let go of counts no more, though the kernel still tries to deliver the rest.
pub fn connected_to(port: u16) -> HashMap<SocketAddr, u64> {
    const HELD_BY_NOBODY: &str = "0";
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|row| row.split_ascii_whitespace().collect::<Vec<_>>());
    let held = rows.filter(|row| row.len() > 9 && row[9] != HELD_BY_NOBODY);
    held.filter(|row| address(row[1]).port() == port).map(|row| (address(row[2]), waiting(row[4]))).collect()
}

/// Of the two queues of a row, the one that is sent from.
fn waiting(queues: &str) -> u64 {
    u64::from_str_radix(queues.split_once(':').unwrap().0, 16).unwrap()
}

/// An address as the kernel's table has it: the number in this machine's byte order.
fn address(hex: &str) -> SocketAddr {
    let (ip, port) = hex.split_once(':').unwrap();
    let ip = u32::from_str_radix(ip, 16).unwrap().to_ne_bytes();
    SocketAddr::from((ip, u16::from_str_radix(port, 16).unwrap()))
}
