//! Connections that speak just enough of a protocol to be counted: ours (PROTOCOL 2) and that of NATS. What a client library costs
//! is left out on both sides, so that the servers are compared.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use postwire::wire::{Message, Peer, RunId, Text};
use postwire::Nickname;

use crate::common::{raw, DEADLINE};
use crate::pause;

#[derive(Debug, Clone, Copy)]
pub enum Protocol {
    Postwire,
    Nats,
}

/// What a frame says, as far as it counts.
pub enum Said {
    Text,
    /// So many texts of ours in all.
    Acknowledged(u64),
    Other,
}

impl Protocol {
    /// Opens a connection that hears everything said in the room, or on the one subject.
    pub fn join(self, address: SocketAddr) -> TcpStream {
        match self {
            Protocol::Postwire => hello(address, fresh_number(), true),
            Protocol::Nats => nats_hello(address, "SUB t 1\r\n"),
        }
    }

    /// Opens one that talks; with the number that its texts carry.
    pub fn talker(self, address: SocketAddr) -> (TcpStream, u32) {
        let number = fresh_number();
        match self {
            Protocol::Postwire => (hello(address, number, true), number),
            Protocol::Nats => (nats_hello(address, ""), number),
        }
    }

    /// Appends a text for all.
    pub fn encode(self, number: u32, sequence: u64, text: &str, out: &mut Vec<u8>) {
        match self {
            Protocol::Postwire => {
                let text = Text {
                    run: run(number),
                    sequence,
                    from: None,
                    to: None,
                    leave: false,
                    to_room: false,
                    text: text.to_owned(),
                };
                Message::Text(text).encode(out);
            }
            Protocol::Nats => write!(out, "PUB t {}\r\n{text}\r\n", text.len()).unwrap(),
        }
    }

    /// What a reader owes its server after so many texts in all.
    pub fn acknowledge(self, texts: u64) -> Vec<u8> {
        let mut out = Vec::new();
        if matches!(self, Protocol::Postwire) {
            Message::TextAck { count: texts }.encode(&mut out);
        }
        out
    }

    /// The first whole frame: its bytes, and what it says.
    pub fn next_frame(self, input: &[u8]) -> Option<(usize, Said)> {
        let number = |at: usize| Some(u64::from_be_bytes(input.get(at..at + 8)?.try_into().ok()?));
        let (bytes, said) = match self {
            Protocol::Postwire => {
                let said = match *input.first()? {
                    TEXT => Said::Text,
                    TEXT_ACK => Said::Acknowledged(number(9)?),
                    _ => Said::Other,
                };
                (9 + number(1)? as usize, said)
            }
            Protocol::Nats => {
                let line = input.windows(2).position(|end| end == b"\r\n")?;
                if input.starts_with(b"MSG ") {
                    let length = std::str::from_utf8(&input[..line]).unwrap().rsplit(' ').next().unwrap();
                    (line + 2 + length.parse::<usize>().unwrap() + 2, Said::Text)
                } else {
                    (line + 2, Said::Other)
                }
            }
        };
        (input.len() >= bytes).then_some((bytes, said))
    }
}

/// Each connection is a run of its own: another one would be owed what the last was not given.
fn fresh_number() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

fn run(number: u32) -> RunId {
    let mut run = [0; 16];
    run[..4].copy_from_slice(&number.to_be_bytes());
    RunId(run)
}

/// Dials, says HELLO and PEER, and waits for NAMED.
fn hello(address: SocketAddr, number: u32, in_room: bool) -> TcpStream {
    let mut stream = connect(address);
    let Message::Peer(peer) = raw::peer(0) else { unreachable!("says who is there") };
    let nickname = Nickname::parse(format!("r{number}").as_bytes()).ok();
    let peer = Peer { run: run(number), in_room, nickname, ..peer };
    let hello = raw::bytes(&[raw::hello(), Message::Peer(peer)]);
    stream.write_all(&hello).unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let mut rest = vec![0; u64::from_be_bytes(head[1..].try_into().unwrap()) as usize];
        stream.read_exact(&mut rest).unwrap();
        assert_ne!(head[0], REFUSED, "client {number} was refused");
        if head[0] == NAMED {
            return stream;
        }
    }
}

fn nats_hello(address: SocketAddr, subscription: &str) -> TcpStream {
    let mut stream = connect(address);
    write!(stream, "CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\n{subscription}PING\r\n").unwrap();
    let mut heard = Vec::new();
    // INFO, and when all of that is understood PONG.
    while !heard.ends_with(b"PONG\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        heard.push(byte[0]);
    }
    stream
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Clients of ours that do nothing. They answer no PING: whoever measures has 90 seconds (PROTOCOL 2.7).
pub struct Idle(#[allow(dead_code)] Vec<TcpStream>);

impl Idle {
    /// Connects so many; returns when they have read all that the server had to tell them.
    pub fn connect(address: SocketAddr, count: usize, in_room: bool) -> Idle {
        let mut clients: Vec<_> = (0..count).map(|_| hello(address, fresh_number(), in_room)).collect();
        let mut silent_passes = 0;
        // In a room everybody hears of everybody: read until half a second brings nothing.
        while silent_passes < 5 {
            let heard: usize = clients.iter_mut().map(read_what_is_there).sum();
            silent_passes = if heard > 0 { 0 } else { silent_passes + 1 };
            pause(Duration::from_millis(100));
        }
        Idle(clients)
    }
}

fn read_what_is_there(stream: &mut TcpStream) -> usize {
    let mut buffer = [0; 64 * 1024];
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut buffer) {
        Ok(0) => panic!("the server ended a connection"),
        Ok(count) => count,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}

// PROTOCOL 3.
const REFUSED: u8 = 0x84;
const NAMED: u8 = 0x86;
const TEXT: u8 = 0x90;
const TEXT_ACK: u8 = 0x91;
