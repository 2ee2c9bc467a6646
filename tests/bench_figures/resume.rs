//! A file of which half was sent before a break: how soon new bytes flow, and how long the rest takes.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use postwire::{Client, Config, Event, Retry, Server};

use crate::common::{until, Scratch};
use crate::files::link_to;
use crate::proxy::{Direction, Faults, Line, Proxy};
use crate::report::{bytes, digits, median, seconds, Row};
use crate::{Bench, Measured};

const WAIT: Duration = Duration::from_secs(120);
const HALF_ROUND_TRIP: Duration = Duration::from_millis(25);
/// More than the hello, the offer and the sums of a file of 1 GiB: what follows is data.
const BEFORE_DATA_BYTES: u64 = 64 * 1024;

struct Place {
    server: Server,
    file: String,
    inbox: String,
    size: u64,
}

pub fn half_sent(bench: &Bench) -> Measured {
    let scratch = Scratch::new();
    let size = bench.scaled(1 << 30).max(1 << 20);
    let (file, inbox) = (scratch.file("file", size, 1), scratch.directory("inbox"));
    let server = Server::bind("127.0.0.1:0", Config { dir: Some(inbox.clone().into()), ..Config::default() }).unwrap();
    let events = server.clone();
    std::thread::spawn(move || while let Ok(Some(_)) = events.next_event(None) {});
    let place = Place { server, file, inbox, size };
    let mut figures = [const { Vec::new() }; 4];
    for _ in 0..bench.rounds {
        let round = place.round();
        figures.iter_mut().zip(round).for_each(|(all, new)| all.push(new));
    }
    let [first, done, ideal, ratio] = figures.map(|figure| median(&figure));
    let half = format!("half-sent {}", bytes(size));
    let trip = HALF_ROUND_TRIP.as_secs_f64() * 2.0;
    let trips = [&*format!("{half}, until new bytes leave, 50 ms round trip"), &seconds(first), "one round trip"];
    let peer = format!("reading what is there and sending the rest {}", seconds(ideal));
    let all = [&*format!("{half}, until done"), &seconds(done), &*peer];
    Ok(vec![
        Row::at_most(&trips, (first / trip * 100.0).round() / 100.0, "round trips", 3.0, 1.0),
        Row::at_most(&all, ratio, "", 1.2, 1.0),
    ])
}

impl Place {
    /// Seconds until new bytes leave, until done, what is ideal, and the ratio of the last two.
    fn round(&self) -> [f64; 4] {
        let address = self.server.local_addr();
        let whole = self.send(&address.to_string()).expect("nothing breaks here");
        fs::remove_file(self.path("file")).unwrap();
        let cut = Line { reset_after_bytes: Some(self.size / 2), ..Line::default() };
        let proxy = Proxy::start(address, Faults { to_server: cut, ..Faults::default() });
        assert!(self.send(&proxy.address().to_string()).is_none(), "the line was cut half way");
        self.until_alone();
        let first = self.until_data_flows();
        self.until_alone();
        let partial = fs::read_dir(&self.inbox).unwrap().next().unwrap().unwrap().path();
        let held = partial.metadata().unwrap().len();
        let reading = read_through(&partial, held);
        let done = self.send(&address.to_string()).expect("nothing breaks here");
        crate::common::assert_same_file(&self.file, self.path("file"));
        fs::remove_file(self.path("file")).unwrap();
        let ideal = reading + whole * (1.0 - held as f64 / self.size as f64);
        eprintln!(
            "bench: resume: {} of {} were there, all of it takes {} s",
            bytes(held),
            bytes(self.size),
            digits(whole)
        );
        [first, done, ideal, done / ideal]
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.inbox)
    }

    /// Sends the file: seconds until the receipt, if one came.
    fn send(&self, address: &str) -> Option<f64> {
        let begin = Instant::now();
        let client = self.client(address);
        let is_sent = loop {
            match client.next_event(Some(WAIT)).unwrap() {
                Some(Event::Sent(_)) => break true,
                Some(_) => {}
                None => break false,
            }
        };
        let time = begin.elapsed().as_secs_f64();
        client.abort();
        is_sent.then_some(time)
    }

    fn client(&self, address: &str) -> Client {
        let client =
            Client::connect(address, Config { retry: Retry::For(Duration::ZERO), ..Config::default() }).unwrap();
        client.send_file(self.file.as_ref()).unwrap();
        client
    }

    fn until_data_flows(&self) -> f64 {
        let link = link_to(self.server.local_addr().port(), HALF_ROUND_TRIP, None);
        let begin = Instant::now();
        let client = self.client(&link.address().to_string());
        until("new bytes", || (link.bytes_forwarded(Direction::ToServer) > BEFORE_DATA_BYTES).then_some(()));
        let time = begin.elapsed().as_secs_f64();
        client.abort();
        // They left half a round trip before.
        time - HALF_ROUND_TRIP.as_secs_f64()
    }

    /// Until nobody holds the partial any more.
    fn until_alone(&self) {
        until("the end of the broken connection", || self.server.peers().is_empty().then_some(()));
    }
}

fn read_through(path: &Path, size: u64) -> f64 {
    let begin = Instant::now();
    let mut hasher = crc32fast::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    let mut file = File::open(path).unwrap().take(size);
    loop {
        match file.read(&mut piece).unwrap() {
            0 => break,
            count => hasher.update(&piece[..count]),
        }
    }
    std::hint::black_box(hasher.finalize());
    begin.elapsed().as_secs_f64()
}
