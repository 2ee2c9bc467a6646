//! How soon new bytes flow when a half-sent file of 1 GiB is sent again, and how long all of it takes, against sending it whole
//! and reading what is there. A measurement, so it is ignored among the tests; `scripts/bench resume` runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::print_stdout, clippy::as_conversions, dead_code)]

mod common;
#[path = "tools/proxy.rs"]
mod proxy;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use postwire::{Client, Config, Event, Retry, Server};
use proxy::{Faults, Line, Proxy};

const WAIT: Duration = Duration::from_secs(120);
const SIZE_BYTES: u64 = 1 << 30;

/// Sends the file; gives the time until the first acknowledgement of new bytes, and until the receipt, if one came.
fn send(address: &str, file: &Path) -> (Duration, Option<Duration>) {
    let begin = Instant::now();
    let client = Client::connect(address, Config { retry: Retry::For(Duration::ZERO), ..Config::default() }).unwrap();
    client.send_file(file).unwrap();
    let mut first = None;
    while let Some(event) = client.next_event(Some(WAIT)).unwrap() {
        match event {
            Event::Progress(_) => drop(first.get_or_insert_with(|| begin.elapsed())),
            Event::Sent(_) => return (first.unwrap(), Some(begin.elapsed())),
            _ => {}
        }
    }
    (first.unwrap_or_default(), None)
}

fn read_through(path: &Path, bytes: u64) -> Duration {
    let begin = Instant::now();
    let mut hasher = crc32fast::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    let mut file = File::open(path).unwrap().take(bytes);
    loop {
        match file.read(&mut piece).unwrap() {
            0 => break,
            count => hasher.update(&piece[..count]),
        }
    }
    assert_ne!(hasher.finalize(), 1);
    begin.elapsed()
}

#[test]
#[ignore = "a measurement"]
fn a_half_sent_file_goes_on() {
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_: io::Error| tempfile::tempdir()).unwrap();
    let (file, inbox) = (place.path().join("file"), place.path().join("inbox"));
    fs::create_dir(&inbox).unwrap();
    common::random_file(&file, usize::try_from(SIZE_BYTES).unwrap(), 1);
    let server = Server::bind("127.0.0.1:0", Config { dir: Some(inbox.clone()), ..Config::default() }).unwrap();
    let events = server.clone();
    std::thread::spawn(move || while let Ok(Some(_)) = events.next_event(None) {});
    let address = server.local_addr();
    let (_, whole) = send(&address.to_string(), &file);
    fs::remove_file(inbox.join("file")).unwrap();
    let cut = Line { reset_after_bytes: Some(SIZE_BYTES / 2), ..Line::default() };
    let proxy = Proxy::start(address, Faults { to_server: cut, ..Faults::default() });
    let (_, none) = send(&proxy.address().to_string(), &file);
    assert!(none.is_none(), "the line was cut half way");
    let partial = fs::read_dir(&inbox).unwrap().next().unwrap().unwrap().path();
    let held = partial.metadata().unwrap().len();
    let reading = read_through(&partial, held);
    let (first, done) = send(&address.to_string(), &file);
    let (whole, done) = (whole.unwrap().as_secs_f64(), done.unwrap().as_secs_f64());
    let ideal = reading.as_secs_f64() + whole * (1.0 - held as f64 / SIZE_BYTES as f64);
    println!("resume: {} MiB of {} MiB were there", held >> 20, SIZE_BYTES >> 20);
    println!("  new bytes acknowledged after {:.1} ms", first.as_secs_f64() * 1000.0);
    println!(
        "  done after {done:.2} s; reading what is there and sending the rest: {ideal:.2} s, {:.2} times",
        done / ideal
    );
    println!("  sending all of it: {whole:.2} s");
}
