//! Texts: how long one takes there and back, alone and beside a file, and how many reach many readers.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use postwire::{Client, Config, Event};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

use crate::common::{Scratch, DEADLINE};
use crate::files::link_to;
use crate::peers;
use crate::process::server;
use crate::raw::{Protocol, Said};
use crate::report::{median, p99, seconds, thousands, Row};
use crate::{Bench, Measured};

const TEXT_BYTES: usize = 64;

/// A server in this process, which takes each text and acknowledges it by that.
fn own_server(config: Config) -> postwire::Server {
    let server = postwire::Server::bind("127.0.0.1:0", config).unwrap();
    let events = server.clone();
    thread::spawn(move || while let Ok(Some(_)) = events.next_event(None) {});
    server
}

fn connected(address: SocketAddr) -> Client {
    let client = Client::connect(&address.to_string(), Config::default()).unwrap();
    client.wait_connected(DEADLINE).unwrap();
    client
}

/// Sends a text and waits until it is acknowledged: seconds.
fn text_round_trip(client: &Client) -> f64 {
    let begin = Instant::now();
    let sent = client.send_text(None, &"x".repeat(TEXT_BYTES)).unwrap();
    loop {
        match client.next_event(Some(DEADLINE)).unwrap().unwrap() {
            Event::TextDelivered { sequence } if sequence == sent => return begin.elapsed().as_secs_f64(),
            Event::Sent(_) => panic!("the file was over before the measurement"),
            _ => {}
        }
    }
}

/// A thread that sends back what comes.
fn echo() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut other, _) = listener.accept().unwrap();
    other.set_nodelay(true).unwrap();
    thread::spawn(move || {
        let mut text = [0; TEXT_BYTES];
        while other.read_exact(&mut text).is_ok() && other.write_all(&text).is_ok() {}
    });
    stream
}

fn echo_round_trip(stream: &mut TcpStream) -> f64 {
    let mut text = [b'x'; TEXT_BYTES];
    let begin = Instant::now();
    stream.write_all(&text).unwrap();
    stream.read_exact(&mut text).unwrap();
    begin.elapsed().as_secs_f64()
}

pub fn ping(bench: &Bench) -> Measured {
    let server = own_server(Config::default());
    let client = connected(server.local_addr());
    let mut stream = echo();
    let texts = bench.scaled(4000);
    let mut figures = [const { Vec::new() }; 4];
    for _ in 0..bench.rounds {
        let ours: Vec<f64> = (0..texts).map(|_| text_round_trip(&client)).collect();
        let raw: Vec<f64> = (0..texts).map(|_| echo_round_trip(&mut stream)).collect();
        let round = [median(&ours), median(&raw), p99(&ours), p99(&raw)];
        figures.iter_mut().zip(round).for_each(|(all, new)| all.push(new));
    }
    let [ours, raw, ours_p99, raw_p99] = figures.map(|figure| median(&figure));
    let row = |what: &str, ours: f64, raw: f64| {
        let peer = format!("raw TCP {}", seconds(raw));
        Row::at_most(&[what, &seconds(ours), &peer], ours / raw, "", 1.5, 1.2)
    };
    Ok(vec![row("text of 64 bytes there and back, median", ours, raw), row("the same, p99", ours_p99, raw_p99)])
}

pub fn ping_beside_a_file(bench: &Bench) -> Measured {
    let scratch = Scratch::new();
    let (file, inbox) = (scratch.path("file"), scratch.directory("inbox"));
    // Holes, and more than the time allows, so that it never ends before the measurement.
    File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let server = own_server(Config { dir: Some(inbox.into()), ..Config::default() });
    let link = link_to(server.local_addr().port(), Duration::ZERO, Some(10_000_000));
    let client = connected(link.address());
    let idle: Vec<f64> = (0..300).map(|_| text_round_trip(&client)).collect();
    client.send_file(file.as_ref()).unwrap();
    let begin = Instant::now();
    // The window is measured within the first second.
    while begin.elapsed() < Duration::from_secs(1) {
        text_round_trip(&client);
    }
    let mut busy = Vec::new();
    while begin.elapsed() < Duration::from_secs(1 + 5 * bench.rounds.min(12) as u64) {
        busy.push(text_round_trip(&client));
    }
    client.abort();
    let ours = format!("median {}, p99 {}", seconds(median(&busy)), seconds(p99(&busy)));
    let peer = format!("idle line: {}, {}", seconds(median(&idle)), seconds(p99(&idle)));
    let what = ["text there and back while 1 GiB flows on the connection, link of 10 MB/s", &ours, &peer];
    Ok(vec![Row::at_most(&what, p99(&busy) * 1e3, "ms", 100.0, 40.0)])
}

pub fn fan_out(bench: &Bench) -> Measured {
    let readers = bench.connections(100);
    let texts = bench.scaled(20_000) as usize;
    let server = server(&[]);
    let nats = peers::nats();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        let measure_ours = |all: &mut Vec<f64>| {
            all.push(deliveries_per_second(Protocol::Postwire, server.port(), readers, texts));
        };
        if round % 2 == 0 {
            measure_ours(&mut ours);
        }
        theirs.push(deliveries_per_second(Protocol::Nats, nats.port, readers, texts));
        if round % 2 == 1 {
            measure_ours(&mut ours);
        }
    }
    let (ours, theirs) = (median(&ours), median(&theirs));
    let per_second = |value: f64| format!("{} deliveries a second", thousands(value as u64));
    let what = format!("texts of 64 bytes to {readers} readers; ours printed and acknowledged too");
    let peer = format!("nats-server {}", per_second(theirs));
    Ok(vec![Row::at_least(&[&what, &per_second(ours), &peer], ours / theirs, 0.3, 1.0)])
}

/// The talker is never further ahead of the slowest reader, and of what was acknowledged to it (PROTOCOL 4.5).
const AHEAD_MAX: usize = 1000;
/// Texts in one write.
const BATCH: usize = 100;

/// One connection talks, the others count; one thread each, and the same for either protocol.
fn deliveries_per_second(protocol: Protocol, port: u16, readers: usize, texts: usize) -> f64 {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut readers: Vec<Reader> = (0..readers).map(|_| Reader::new(protocol, protocol.join(address))).collect();
    let (mut talker, talker_number) = protocol.talker(address);
    // What was acknowledged to the talker counts too; NATS acknowledges nothing.
    let texts_acknowledged = if matches!(protocol, Protocol::Nats) { usize::MAX } else { 0 };
    let hears = Reader::new(protocol, talker.try_clone().unwrap());
    readers.push(Reader { counts: false, texts: texts_acknowledged, ..hears });
    let slowest = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&slowest);
    let begin = Instant::now();
    let talking = thread::spawn(move || {
        let text = "x".repeat(TEXT_BYTES);
        let mut said = 0;
        while said < texts {
            let count = BATCH.min(texts - said).min((seen.load(Ordering::SeqCst) + AHEAD_MAX).saturating_sub(said));
            if count == 0 {
                thread::park_timeout(DEADLINE);
                assert!(begin.elapsed() < FAN_OUT_MAX, "{protocol:?} stands still");
                continue;
            }
            let mut out = Vec::new();
            (said..said + count).for_each(|at| protocol.encode(talker_number, at as u64 + 1, &text, &mut out));
            write_all(&mut talker, &out);
            said += count;
        }
    });
    loop {
        for ready in wait_for_any(&readers) {
            readers[ready].read();
        }
        let least = readers.iter().map(|reader| reader.texts).min().unwrap();
        slowest.store(least, Ordering::SeqCst);
        talking.thread().unpark();
        if least >= texts {
            break;
        }
        assert!(begin.elapsed() < FAN_OUT_MAX, "{protocol:?}: {least} of {texts} texts came");
    }
    let time = begin.elapsed().as_secs_f64();
    talking.join().unwrap();
    ((readers.len() - 1) * texts) as f64 / time
}

const FAN_OUT_MAX: Duration = Duration::from_secs(300);

struct Reader {
    protocol: Protocol,
    stream: TcpStream,
    waiting: Vec<u8>,
    buffer: Vec<u8>,
    counts: bool,
    texts: usize,
}

impl Reader {
    fn new(protocol: Protocol, stream: TcpStream) -> Reader {
        stream.set_nonblocking(true).unwrap();
        Reader { protocol, stream, waiting: Vec::new(), buffer: vec![0; 64 * 1024], counts: true, texts: 0 }
    }

    fn read(&mut self) {
        match self.stream.read(&mut self.buffer) {
            Ok(0) => panic!("{:?}: the server ended a connection", self.protocol),
            Ok(count) => self.waiting.extend_from_slice(&self.buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
        let (mut taken, before) = (0, self.texts);
        while let Some((bytes, said)) = self.protocol.next_frame(&self.waiting[taken..]) {
            taken += bytes;
            match said {
                Said::Text if self.counts => self.texts += 1,
                Said::Acknowledged(texts) if !self.counts => self.texts = texts as usize,
                _ => {}
            }
        }
        self.waiting.drain(..taken);
        if self.texts > before && self.counts {
            let acknowledgement = self.protocol.acknowledge(self.texts as u64);
            write_all(&mut self.stream, &acknowledgement);
        }
    }
}

/// The whole, on a socket that does not wait.
fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait(&mut [PollFd::new(stream, PollFlags::OUT)]);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Those that have something to read.
fn wait_for_any(readers: &[Reader]) -> Vec<usize> {
    let mut sockets: Vec<_> = readers.iter().map(|reader| PollFd::new(&reader.stream, PollFlags::IN)).collect();
    wait(&mut sockets);
    (0..sockets.len()).filter(|at| !sockets[*at].revents().is_empty()).collect()
}

fn wait(sockets: &mut [PollFd<'_>]) {
    // Whether one is ready is seen by the next look.
    let _ = poll(sockets, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
}
