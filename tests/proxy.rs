//! The fault-injecting proxy does what it says, against a plain echo server.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "tools/proxy.rs"]
mod proxy;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use proxy::{Direction, Faults, Line, Proxy};

const DEADLINE: Duration = Duration::from_secs(20);

/// Sends back what it hears; its threads end with their connections, and with the test's process.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || {
                // A reset is what half of these tests are about.
                let _ = io::copy(&mut &stream, &mut &stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn start(to_server: Line, to_client: Line) -> Proxy {
    Proxy::start(echo_server(), Faults { to_server, to_client, ..Faults::default() })
}

fn pattern(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|i| u8::try_from(i.wrapping_mul(0x9E37_79B1) >> 24).unwrap()).collect()
}

/// Sends `data` from another thread, then the end of the stream; gives what came back.
fn exchange(stream: &TcpStream, data: &[u8]) -> (Vec<u8>, io::Result<()>) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = stream;
            let _ = stream.write_all(data).and_then(|()| stream.shutdown(Shutdown::Write));
        });
        let (mut back, mut stream) = (Vec::new(), stream);
        let outcome = stream.read_to_end(&mut back).map(|_| ());
        (back, outcome)
    })
}

fn assert_echoes(stream: &mut TcpStream, word: &[u8]) {
    stream.write_all(word).unwrap();
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, word);
}

fn assert_silent(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(stream.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
}

#[test]
fn without_faults_everything_and_the_end_arrive() {
    let proxy = start(Line::default(), Line::default());
    let data = pattern(3_000_000);
    let (back, outcome) = exchange(&connect(&proxy), &data);
    outcome.unwrap();
    assert!(back == data);
    assert_eq!(proxy.connections(), 1);
    assert_eq!(proxy.bytes_forwarded(Direction::ToServer), 3_000_000);
    assert_eq!(proxy.bytes_forwarded(Direction::ToClient), 3_000_000);
}

#[test]
fn small_pieces_change_nothing_but_the_cuts() {
    let line = Line { pieces: Some(1..=7), ..Line::default() };
    let proxy = start(line.clone(), line);
    let data = pattern(50_000);
    let (back, outcome) = exchange(&connect(&proxy), &data);
    outcome.unwrap();
    assert!(back == data);
}

#[test]
fn a_delay_is_added_once_in_each_direction() {
    let line = Line { delay: Duration::from_millis(50), ..Line::default() };
    let proxy = start(line.clone(), line);
    let data = pattern(1_000_000);
    let stream = connect(&proxy);
    let begin = Instant::now();
    let (back, outcome) = exchange(&stream, &data);
    outcome.unwrap();
    assert!(back == data);
    let elapsed = begin.elapsed();
    assert!(elapsed >= Duration::from_millis(100), "{elapsed:?}");
    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
}

#[test]
fn a_rate_is_kept() {
    let line = Line { rate_bytes_per_second: Some(500_000), delay: Duration::from_millis(20), ..Line::default() };
    let proxy = start(line, Line::default());
    let begin = Instant::now();
    let (back, outcome) = exchange(&connect(&proxy), &pattern(250_000));
    outcome.unwrap();
    assert_eq!(back.len(), 250_000);
    let elapsed = begin.elapsed();
    assert!(elapsed >= Duration::from_millis(490), "{elapsed:?}");
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
}

#[test]
fn a_slow_link_holds_the_sender_back() {
    let line = Line { rate_bytes_per_second: Some(20_000), ..Line::default() };
    let proxy = start(line, Line::default());
    let mut stream = connect(&proxy);
    rustix::net::sockopt::set_socket_send_buffer_size(&stream, 16 * 1024).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut taken = 0;
    while let Ok(count) = stream.write(&[0; 4096]) {
        taken += count;
        assert!(taken < 200_000, "the link took {taken} bytes at once");
    }
}

#[test]
fn a_reset_comes_at_its_byte() {
    let proxy = start(Line::default(), Line { reset_after_bytes: Some(1234), ..Line::default() });
    let mut stream = connect(&proxy);
    stream.write_all(&pattern(5000)).unwrap();
    let mut back = Vec::new();
    let error = stream.read_to_end(&mut back).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(back == pattern(1234));
}

#[test]
fn a_half_close_ends_one_direction_only() {
    let proxy = start(Line::default(), Line { half_close_after: Some(100), ..Line::default() });
    let mut stream = connect(&proxy);
    stream.write_all(&pattern(300)).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert!(back == pattern(100));
    stream.write_all(&pattern(200)).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while proxy.bytes_forwarded(Direction::ToServer) < 500 {
        assert!(Instant::now() < deadline, "the other direction ended too");
        thread::yield_now();
    }
}

#[test]
fn a_stalled_connection_stays_open_beside_a_clean_one() {
    let to_client = Line { stall_after: Some(10), ..Line::default() };
    let faults = Faults { to_client, only_connections: Some(1), ..Faults::default() };
    let proxy = Proxy::start(echo_server(), faults);
    let mut first = connect(&proxy);
    assert_echoes(&mut first, b"0123456789");
    first.write_all(b"never comes back").unwrap();
    assert_silent(&mut first);
    let mut second = connect(&proxy);
    assert_echoes(&mut second, b"longer than ten bytes");
    assert_silent(&mut first);
}

#[test]
fn the_named_bits_are_flipped_and_no_other() {
    let proxy = start(Line { flip_bits: vec![3, 8 * 70_000 + 7], ..Line::default() }, Line::default());
    let data = pattern(100_000);
    let (back, outcome) = exchange(&connect(&proxy), &data);
    outcome.unwrap();
    let mut expected = data;
    expected[0] ^= 1 << 3;
    expected[70_000] ^= 1 << 7;
    assert!(back == expected);
}

#[test]
fn kill_all_resets_what_is_open_and_later_connections_work() {
    let proxy = start(Line::default(), Line::default());
    let mut first = connect(&proxy);
    let mut second = connect(&proxy);
    assert_echoes(&mut first, b"first");
    assert_echoes(&mut second, b"second");
    proxy.kill_all();
    assert_eq!(first.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(second.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    proxy.set_target(echo_server());
    assert_echoes(&mut connect(&proxy), b"third");
    assert_eq!(proxy.connections(), 3);
}

#[test]
fn a_blackhole_holds_everything_until_it_ends() {
    let proxy = start(Line::default(), Line::default());
    let mut stream = connect(&proxy);
    assert_echoes(&mut stream, b"before");
    proxy.pause();
    // A step that was under way when the pause began may still carry this.
    stream.write_all(b"x").unwrap();
    let mut newcomer = connect(&proxy);
    newcomer.write_all(b"new").unwrap();
    assert_silent(&mut newcomer);
    proxy.resume();
    let mut back = [0; 1];
    stream.read_exact(&mut back).unwrap();
    let mut back = [0; 3];
    newcomer.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"new");
}

#[test]
fn an_unreachable_target_is_a_reset() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::start(nobody, Faults::default());
    let mut stream = connect(&proxy);
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn dropping_the_proxy_ends_its_connections() {
    let proxy = start(Line::default(), Line { stall_after: Some(0), ..Line::default() });
    let mut stream = connect(&proxy);
    stream.write_all(b"x").unwrap();
    assert_silent(&mut stream);
    drop(proxy);
    assert!(!matches!(stream.read(&mut [0; 1]), Ok(1..)));
}
