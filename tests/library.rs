//! The library as those use it who know Qt's sockets: every row of the table in the crate's documentation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use postwire::{Client, Config, Direction, Error, Event, Nickname, Refusal, Server, State};

const WAIT: Duration = Duration::from_secs(30);

fn in_room(nick: &str) -> Config {
    Config { nick: Some(Nickname::parse(nick.as_bytes()).unwrap()), join_room: true, ..Config::default() }
}

fn connect(server: &Server, config: Config) -> Client {
    let client = Client::connect(&server.local_addr().to_string(), config).unwrap();
    client.wait_connected(WAIT).unwrap();
    client
}

/// Takes events until one fits.
fn until<T>(
    next: impl Fn(Option<Duration>) -> postwire::Result<Option<Event>>,
    fits: impl Fn(Event) -> Option<T>,
) -> T {
    loop {
        let event = next(Some(WAIT)).unwrap().expect("the events ended");
        if let Some(found) = fits(event) {
            return found;
        }
    }
}

#[test]
fn a_server_listens_on_a_free_port_until_it_is_closed() {
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    assert!(server.is_listening());
    assert!(server.server_address().is_loopback());
    assert_ne!(server.server_port(), 0);
    let client = connect(&server, Config::default());
    server.close();
    assert!(!server.is_listening());
    let late = Client::connect(&server.local_addr().to_string(), Config::default()).unwrap();
    assert!(late.wait_connected(WAIT).is_err(), "a closed server takes nobody");
    client.send_text(None, "the peers stay").unwrap();
    until(|t| server.next_event(t), |event| matches!(event, Event::Text(_)).then_some(()));
}

#[test]
fn all_addresses_means_ipv4_and_ipv6() {
    let server = Server::bind(":0", Config::default()).unwrap();
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let client = Client::connect(&format!("{host}:{}", server.server_port()), Config::default()).unwrap();
        client.wait_connected(WAIT).unwrap();
    }
}

#[test]
fn a_timeout_waiting_for_a_connection_is_told_from_an_error() {
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    assert!(server.next_pending_connection().is_none());
    assert!(matches!(server.wait_for_new_connection(Duration::from_millis(10)), Err(Error::Timeout { .. })));
    let client = connect(&server, in_room("ann"));
    let peer = server.wait_for_new_connection(WAIT).unwrap();
    assert_eq!(peer.nickname.as_str(), "ann");
    assert_eq!(Some(peer.address), client.local_addr());
    assert_eq!(client.peer_addr(), Some(server.local_addr()));
    assert_eq!(client.peer_name(), server.local_addr().to_string());
    server.stop();
    assert!(matches!(server.wait_for_new_connection(WAIT), Err(Error::Closed)));
}

#[test]
fn a_new_connection_is_an_event_and_errors_display_well() {
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    let _client = connect(&server, Config::default());
    until(|t| server.next_event(t), |event| matches!(event, Event::PeerConnected { .. }).then_some(()));
    let taken = Server::bind(&server.local_addr().to_string(), Config::default()).err().unwrap();
    assert!(taken.to_string().starts_with("can't listen: "), "{taken}");
    let bad = Server::bind("no:such:address", Config::default()).err().unwrap();
    assert!(bad.to_string().contains("HOST:PORT"), "{bad}");
}

#[test]
fn every_state_is_an_event_and_connecting_returns_at_once() {
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    let begin = Instant::now();
    let client = Client::connect(&server.local_addr().to_string(), Config::default()).unwrap();
    assert!(begin.elapsed() < WAIT);
    client.wait_connected(WAIT).unwrap();
    assert_eq!(client.state(), State::Connected);
    client.disconnect();
    client.wait_disconnected(WAIT).unwrap();
    assert_eq!(client.state(), State::Unconnected);
    let mut states = Vec::new();
    while let Some(event) = client.next_event(Some(WAIT)).unwrap() {
        match event {
            Event::StateChanged(state) => states.push(state),
            Event::Disconnected(error) => assert!(error.is_none(), "{error:?}"),
            _ => {}
        }
    }
    let all = [State::HostLookup, State::Connecting, State::Connected, State::Closing, State::Unconnected];
    assert_eq!(states, all);
}

#[test]
fn an_error_is_an_event() {
    // Nothing listens there; a port just given back may still be open in a child that another test forks.
    let free = "127.0.0.9:1";
    let client = Client::connect(free, Config::default()).unwrap();
    assert!(matches!(client.wait_connected(WAIT), Err(Error::Closed)));
    let error = until(
        |t| client.next_event(t),
        |event| match event {
            Event::Disconnected(error) => error,
            _ => None,
        },
    );
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[test]
fn closing_first_delivers_what_is_queued() {
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    let client = Client::connect(&server.local_addr().to_string(), Config::default()).unwrap();
    for number in 0..500 {
        client.send_text(None, &number.to_string()).unwrap();
    }
    client.disconnect();
    for number in 0..500 {
        let text = until(
            |t| server.next_event(t),
            |event| match event {
                Event::Text(text) => Some(text.text.clone()),
                _ => None,
            },
        );
        assert_eq!(text, number.to_string());
    }
    client.wait_disconnected(WAIT).unwrap();
}

#[test]
fn a_server_disconnects_a_peer_after_what_is_queued_for_it() {
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    let client = connect(&server, in_room("ann"));
    let peer = server.wait_for_new_connection(WAIT).unwrap();
    server.send_text(None, "last words").unwrap();
    server.disconnect(&peer);
    until(
        |t| client.next_event(t),
        |event| matches!(event, Event::Text(text) if text.text == "last words").then_some(()),
    );
    client.wait_disconnected(WAIT).unwrap();
}

#[test]
fn the_receive_queue_is_bounded_and_tells_what_waits() {
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    let client = connect(&server, in_room("ann"));
    server.wait_for_new_connection(WAIT).unwrap();
    client.set_read_buffer_size(10);
    assert_eq!(client.read_buffer_size(), 10);
    assert!(!client.can_read_text() && client.bytes_available() == 0);
    server.send_text(None, "12345678").unwrap();
    let refused = server.send_text(None, "does not fit").unwrap();
    let refusal = until(
        |t| server.next_event(t),
        |event| match event {
            Event::TextRefused { sequence, refusal } if sequence == refused => Some(refusal),
            _ => None,
        },
    );
    assert_eq!(refusal, Refusal::TooMuch);
    assert!(client.can_read_text());
    assert_eq!(client.bytes_available(), 8);
    until(|t| client.next_event(t), |event| matches!(event, Event::Text(_)).then_some(()));
    assert_eq!(client.bytes_available(), 0);
}

#[test]
fn files_go_both_ways_at_once_with_progress_and_receipts() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let data: Vec<u8> = (0..40_000_000_u32).flat_map(|n| n.to_le_bytes()).take(40_000_000).collect();
    let (up, down) = (here.path().join("up"), there.path().join("down"));
    std::fs::write(&up, &data).unwrap();
    std::fs::write(&down, &data).unwrap();
    let server = Server::bind("127.0.0.1:0", Config { dir: Some(there.path().into()), ..Config::default() }).unwrap();
    let client = connect(&server, Config { dir: Some(here.path().into()), ..in_room("ann") });
    let ann = server.wait_for_new_connection(WAIT).unwrap().nickname;
    client.send_file(&up).unwrap();
    server.send_file(Some(&ann), &down).unwrap();
    client.send_text(None, "beside them").unwrap();
    for next in [|c: &Client, _: &Server, t| c.next_event(t), |_: &Client, s: &Server, t| s.next_event(t)] {
        let (mut sent, mut received, mut most) = (false, false, 0);
        while !(sent && received) {
            match next(&client, &server, Some(WAIT)).unwrap().unwrap() {
                Event::Progress(progress) if progress.direction == Direction::Outgoing => {
                    assert!(progress.bytes >= most && progress.size_bytes.is_some_and(|size| progress.bytes <= size));
                    most = progress.bytes;
                }
                Event::Sent(receipt) => {
                    assert!(receipt.durable && receipt.crc32 == crc32fast::hash(&data), "{receipt:?}");
                    sent = true;
                }
                Event::Received(receipt) => received = receipt.bytes == 40_000_000,
                Event::TransferFailed(failure) => panic!("{failure:?}"),
                _ => {}
            }
        }
        assert!(most > 0, "no progress was told");
    }
    assert!(std::fs::read(there.path().join("up")).unwrap() == data);
    assert!(std::fs::read(here.path().join("down")).unwrap() == data);
}

#[test]
fn a_text_for_one_reaches_only_that_one() {
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    let (ann, bob) = (connect(&server, in_room("ann")), connect(&server, in_room("bob")));
    let bob_name = bob.nickname().unwrap();
    ann.send_text(Some(&bob_name), "psst").unwrap();
    let private = until(
        |t| bob.next_event(t),
        |event| match event {
            Event::Text(text) => Some(text.private && text.from.as_ref().is_some_and(|from| from.as_str() == "ann")),
            _ => None,
        },
    );
    assert!(private);
    let nobody = Nickname::parse(b"nobody").unwrap();
    let sequence = ann.send_text(Some(&nobody), "hello?").unwrap();
    let refusal = until(
        |t| ann.next_event(t),
        |event| match event {
            Event::TextRefused { sequence: refused, refusal } if refused == sequence => Some(refusal),
            _ => None,
        },
    );
    assert_eq!(refusal, Refusal::Nobody);
}

/// An example's binary, which cargo builds beside the tests.
fn renamed(event: Event) -> Option<(String, String)> {
    match event {
        Event::Renamed { from, to } => Some((from.to_string(), to.to_string())),
        _ => None,
    }
}

fn text(event: Event) -> Option<(Option<String>, String)> {
    match event {
        Event::Text(text) => Some((text.from.as_ref().map(ToString::to_string), text.text.clone())),
        _ => None,
    }
}

fn named(event: Event) -> Option<String> {
    if let Event::Named(nickname) = event {
        Some(nickname.to_string())
    } else {
        None
    }
}

#[test]
fn a_client_may_be_renamed_and_the_room_is_told() {
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    let (ann, bob) = (connect(&server, in_room("ann")), connect(&server, in_room("bob")));
    let wish = |name: &str| {
        ann.rename(&Nickname::parse(name.as_bytes()).unwrap());
        until(|t| ann.next_event(t), named)
    };
    assert_eq!(until(|t| ann.next_event(t), named), "ann");
    assert_eq!(wish("cat"), "cat");
    let expected = ("ann".to_owned(), "cat".to_owned());
    assert_eq!(until(|t| bob.next_event(t), renamed), expected);
    assert_eq!(until(|t| server.next_event(t), renamed), expected);
    assert_eq!(wish("bob"), "bob-2", "taken");
    assert_eq!(wish("bob-2"), "bob-2", "its own is not taken");
    let to = Nickname::parse(b"bob-2").unwrap();
    bob.send_text(Some(&to), "to the new name").unwrap();
    assert_eq!(until(|t| ann.next_event(t), text), (Some("bob".into()), "to the new name".into()));
    ann.send_text(None, "from the new name").unwrap();
    assert_eq!(until(|t| bob.next_event(t), text), (Some("bob-2".into()), "from the new name".into()));
    // What the server did not hear is not acknowledged, and would hold up the end.
    until(|t| server.next_event(t), |event| text(event).filter(|(_, text)| text == "from the new name"));
    assert_eq!(server.peers().iter().filter(|peer| peer.nickname == to).count(), 1);
    ann.disconnect();
    let left = until(|t| bob.next_event(t), |event| if let Event::Left(who) = event { Some(who) } else { None });
    assert_eq!(left, to);
}

fn example(name: &str) -> Command {
    let tests: PathBuf = std::env::current_exe().unwrap();
    Command::new(tests.parent().unwrap().parent().unwrap().join("examples").join(name))
}

#[test]
fn the_examples_talk_to_each_other() {
    let inbox = tempfile::tempdir().unwrap();
    let mut server = example("server").arg("127.0.0.1:0").arg(inbox.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = lines.next().unwrap().unwrap().replace("listening on ", "");
    let client = example("client").args([&address, "hello", "Cargo.toml"]).output().unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    let said = String::from_utf8(client.stdout).unwrap();
    assert!(client.status.success() && said.contains("answer: got it"), "{said}");
    assert!(lines.any(|line| line.is_ok_and(|line| line == "text: hello")));
    assert_eq!(std::fs::read("Cargo.toml").unwrap(), std::fs::read(inbox.path().join("Cargo.toml")).unwrap());
}

#[test]
fn a_closed_server_leaves_a_listener_that_it_was_given_to_others() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::from_listener(listener.try_clone().unwrap(), Config::default()).unwrap();
    assert_eq!(server.local_addr(), address);
    let client = connect(&server, Config::default());
    server.close();
    assert!(!server.is_listening());
    let late = std::net::TcpStream::connect(address).unwrap();
    let (taken, _) = listener.accept().unwrap();
    assert_eq!(taken.peer_addr().unwrap(), late.local_addr().unwrap());
    assert_eq!(client.state(), State::Connected);
    // With the last who holds it the socket is gone: no thread still waits on it.
    drop((server, listener));
    let deadline = Instant::now() + WAIT;
    while std::net::TcpListener::bind(address).is_err() {
        assert!(Instant::now() < deadline, "somebody holds the listener");
        std::thread::yield_now();
    }
}

#[test]
fn what_several_threads_say_at_once_is_all_heard() {
    const EACH: usize = 300;
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    let client = connect(&server, in_room("ann"));
    until(|t| server.next_event(t), |event| matches!(event, Event::Joined(_)).then_some(()));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let server = &server;
            scope.spawn(move || (0..EACH).for_each(|_| assert!(server.send_text(None, &thread.to_string()).is_ok())));
        }
        for count in 1..=4 * EACH {
            let heard = until(
                |t| client.next_event(t),
                |event| match event {
                    Event::Text(text) => Some(text.text),
                    _ => None,
                },
            );
            assert!(heard.len() == 1, "{count}");
        }
    });
    server.stop();
}
