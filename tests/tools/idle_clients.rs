//! Opens many connections, does the hello of PROTOCOL 2 on each as a client that joins the room, and holds them until stdin
//! ends. For `scripts/bench memory`, which compiles this file with `rustc` alone: hence std only, and a CRC of its own.
//!
//! Prints `ready COUNT` when each has its nickname and has read what the server had to tell it. It answers no PING, so
//! that whoever measures has 90 seconds (PROTOCOL 2.7).

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const HELLO: u8 = 0x81;
const PEER: u8 = 0x83;
const REFUSED: u8 = 0x84;
const NAMED: u8 = 0x86;

fn main() -> io::Result<()> {
    let usage = || io::Error::new(ErrorKind::InvalidInput, "usage: idle_clients ADDRESS COUNT");
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or_else(usage)?;
    let count: u32 = arguments.next().and_then(|word| word.parse().ok()).ok_or_else(usage)?;
    let mut clients = Vec::new();
    for number in 1..=count {
        clients.push(join(&address, number)?);
    }
    // Everybody hears of everybody: read until a second brings nothing.
    let mut silent_passes = 0;
    while silent_passes < 10 {
        silent_passes = if read_what_is_there(&mut clients)? > 0 { 0 } else { silent_passes + 1 };
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("ready {count}");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// Dials, says HELLO and PEER, and waits for NAMED.
fn join(address: &str, number: u32) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut hello = b"POSTWIRE".to_vec();
    hello.extend([0, 1, 0, 1, 0]); // versions 1 to 1, mode 0
    let mut peer = [0; 12].to_vec(); // the run: each client must be another
    peer.extend(number.to_be_bytes());
    peer.extend(1_u16.to_be_bytes()); // in_room
    for limit in [64 * 1024_u32, 256 * 1024, 256 * 1024, 4096] {
        peer.extend(limit.to_be_bytes());
    }
    stream.write_all(&[frame(HELLO, &hello), frame(PEER, &peer)].concat())?;
    loop {
        match read_frame_type(&mut stream)? {
            NAMED => return Ok(stream),
            REFUSED => return Err(io::Error::other(format!("client {number} was refused"))),
            _ => {}
        }
    }
}

/// A frame without a tail (PROTOCOL 1.1).
fn frame(frame_type: u8, fixed: &[u8]) -> Vec<u8> {
    let length = u64::try_from(fixed.len() + 8).unwrap_or(u64::MAX);
    let mut bytes = [&[frame_type][..], &length.to_be_bytes(), fixed, &[0; 4]].concat();
    bytes.extend(crc32(&bytes).to_be_bytes());
    bytes
}

/// Reads one frame and keeps its type; the server is one of ours, so nothing is checked.
fn read_frame_type(stream: &mut TcpStream) -> io::Result<u8> {
    let (mut frame_type, mut length) = ([0], [0; 8]);
    stream.read_exact(&mut frame_type)?;
    stream.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    if io::copy(&mut stream.take(length), &mut io::sink())? < length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(frame_type[0])
}

/// One pass over all: how many bytes came.
fn read_what_is_there(clients: &mut [TcpStream]) -> io::Result<usize> {
    let mut buffer = [0; 64 * 1024];
    let mut total = 0;
    for client in clients {
        client.set_nonblocking(true)?;
        match client.read(&mut buffer) {
            Ok(0) => return Err(io::Error::other("the server ended a connection")),
            Ok(count) => total += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

/// CRC-32 as in zlib, a bit at a time: a hundred bytes a client.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1)))
    })
}
