//! What a stranger may say to a server, and a server to a client: each lie has its answer, nothing outside the directory changes,
//! and whoever is honest is served as before.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::raw::{bytes, hello, offer, peer, Frames};
use common::{client, client_spawn, until, Scratch, Server};
use postwire::config::{
    LEFT_MAX, OPEN_TRANSFERS_MAX, OUTBOX_BYTES_MAX, RELAYED_MAX, SMALL_FILES_BEGUN_MAX, TEXT_WINDOW_BYTES,
};
use postwire::wire::{
    self, CancelReason, Chunk, Decoder, Entry, Frame, Message, Offer, Peer, Presence, Receipt, Relay, RunId, Subject,
    Text, Time,
};
use postwire::{Goodbye, Nickname, Refusal};

/// What comes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    /// REFUSED, subject connection, and the end.
    Refused(Refusal),
    /// REFUSED for the transfer or request, and the connection goes on.
    No(Refusal),
    /// The end without a word: damage.
    End,
    /// Nothing: it is passed over, and the connection goes on.
    Nothing,
}

const VIOLATION: Answer = Answer::Refused(Refusal::Protocol);

fn chunk(transfer: u32, offset: u64, data: &[u8]) -> Message {
    Message::Chunk(Chunk { transfer, offset, crc: crc32fast::hash(data), data: data.to_vec() })
}

fn text(sequence: u64) -> Text {
    Text { run: RunId([9; 16]), sequence, from: None, to: None, leave: false, to_room: false, text: "x".into() }
}

/// One of each message; those of transfers are for number 7, which nobody offered.
fn one_of_each() -> Vec<(&'static str, Message)> {
    let receipt =
        Receipt { transfer: 7, durable: true, already: false, size: 1, resumed: 0, crc: 1, stored: b"x".to_vec() };
    let entry = Entry { request: 7, kind: 0, size: 1, mtime: Time::default(), path: b"x".to_vec() };
    vec![
        ("hello", hello()),
        ("welcome", Message::Welcome { version: 1, mode: 0 }),
        ("peer", peer(1)),
        ("send", Message::Send { transfer: 7, have: 0, credit: 1 }),
        ("ack", Message::Ack { transfer: 7, received: 1, credit: 1 }),
        ("repair", Message::Repair { transfer: 7, offset: 0, length: 1 }),
        ("receipt", Message::Receipt(receipt)),
        ("refused transfer", Message::Refused { subject: Subject::Transfer(7), refusal: Refusal::NoRoom }),
        ("refused text", Message::Refused { subject: Subject::Text(7), refusal: Refusal::Nobody }),
        ("refused request", Message::Refused { subject: Subject::Request(7), refusal: Refusal::NotFound }),
        ("chunk", chunk(7, 0, b"x")),
        ("sums", Message::Sums { transfer: 7, first_block: 0, crcs: vec![1] }),
        ("finish", Message::Finish { transfer: 7, size: 1, crc: 1, grew: false }),
        ("cancel", Message::Cancel { transfer: 7, reason: CancelReason::GivenUp }),
        ("text ack", Message::TextAck { count: 7 }),
        ("entry", Message::Entry(entry)),
        ("ended", Message::Ended { request: 7, more: false, left_out: 0, failed: 0 }),
    ]
}

/// What is said after a good hello, and what comes of it.
fn cases() -> Vec<(String, Vec<u8>, Answer)> {
    let mut cases: Vec<(String, Vec<u8>, Answer)> = Vec::new();
    let mut case = |name: &str, bytes: Vec<u8>, answer| cases.push((name.to_owned(), bytes, answer));
    for (name, message) in one_of_each() {
        case(&format!("{name}, unasked"), bytes(&[message]), VIOLATION);
    }
    // Names.
    let long = [b'x'; 256];
    let deep = vec!["d"; 65].join("/");
    let bad: [&[u8]; 22] = [
        b"",
        b".",
        b"..",
        b"../up",
        b"a/../b",
        b"/etc/passwd",
        b"a//b",
        b"a/",
        b"/",
        b"a\0b",
        b"a\nb",
        b"a\x1b[2J",
        b"\x7f",
        "a\u{202e}b".as_bytes(),
        "a\u{200b}b".as_bytes(),
        "\u{9b}2J".as_bytes(),
        "a\u{feff}".as_bytes(),
        &long,
        deep.as_bytes(),
        b".postwire-0123456789abcdef-0.part",
        b"a/./b",
        b".postwire-x.part",
    ];
    for path in bad {
        let name = format!("the name {}", String::from_utf8_lossy(path).escape_debug());
        case(&name, bytes(&[Message::Offer(offer(1, 1, path))]), Answer::No(Refusal::BadName));
    }
    let deepest = vec!["d"; 64].join("/");
    for (name, path) in [("of 255 bytes", &long[..255]), ("64 deep", deepest.as_bytes())] {
        case(&format!("a name {name}"), bytes(&[Message::Offer(offer(1, 1, path))]), Answer::Nothing);
    }
    // Offers.
    case("an offer with number 0", bytes(&[Message::Offer(offer(0, 1, b"x"))]), VIOLATION);
    let twice = [Message::Offer(offer(2, 1, b"x")), Message::Offer(offer(2, 1, b"y"))];
    case("a number used twice", bytes(&twice), VIOLATION);
    let back = [Message::Offer(offer(2, 1, b"x")), Message::Offer(offer(1, 1, b"y"))];
    case("a number below the last", bytes(&back), VIOLATION);
    let odd = Message::Offer(Offer { kind: 9, ..offer(1, 1, b"x") });
    case("a kind that nobody knows", bytes(&[odd]), Answer::No(Refusal::Unsupported));
    let asked = Message::Offer(Offer { request: 5, ..offer(1, 1, b"x") });
    case("an offer for a request that was not made", bytes(&[asked]), VIOLATION);
    case(
        "a file over the limit",
        bytes(&[Message::Offer(offer(1, 1 << 20 | 1, b"x"))]),
        Answer::No(Refusal::TooBig(1 << 20)),
    );
    case(
        "a file of 2^64-1 bytes",
        bytes(&[Message::Offer(offer(1, u64::MAX, b"x"))]),
        Answer::No(Refusal::TooBig(1 << 20)),
    );
    let early = Offer { mtime: Time { seconds: i64::MIN, nanoseconds: 999_999_999 }, ..offer(1, u64::MAX, b"x") };
    case("a time before all times", bytes(&[Message::Offer(early)]), Answer::No(Refusal::TooBig(1 << 20)));
    case("a file of as much as the limit", bytes(&[Message::Offer(offer(1, 1 << 20, b"x"))]), Answer::Nothing);
    let most: Vec<Message> = (1..=4096).map(|number| Message::Offer(offer(number, 700_000, b"x"))).collect();
    case("4,096 unanswered offers", bytes(&most), Answer::Nothing);
    // Four have a place and are answered.
    let many: Vec<Message> = (1..=4102).map(|number| Message::Offer(offer(number, 700_000, b"x"))).collect();
    case("4,097 open offers and more", bytes(&many), VIOLATION);
    let long = vec!["d".repeat(255); 64].join("/");
    let long: Vec<Message> = (1..=80).map(|number| Message::Offer(offer(number, 700_000, long.as_bytes()))).collect();
    case("80 open offers with the longest path", bytes(&long), VIOLATION);
    // Data. A small file is answered with SEND; what follows need not wait for it.
    let small = || Message::Offer(offer(1, 10, b"small"));
    let large = || Message::Offer(Offer { content_crc: 0, ..offer(1, 700_000, b"large") });
    let stream = || Message::Offer(Offer { kind: 2, ..offer(1, 0, b"stream") });
    let directory = || Message::Offer(Offer { kind: 1, content_crc: 0, ..offer(1, 0, b"directory") });
    let says = |open: Message, message: Message| bytes(&[open, message]);
    let finish = |size| Message::Finish { transfer: 1, size, crc: 1, grew: false };
    case("a small file with too much data", says(small(), chunk(1, 0, &[7; 262_144])), VIOLATION);
    case("a small file with data past its end", says(small(), chunk(1, 1, &[7; 10])), VIOLATION);
    case("a directory with data", says(directory(), chunk(1, 0, b"x")), VIOLATION);
    for (name, open, size) in [("small", small(), 10), ("large", large(), 700_000), ("stream", stream(), 10)] {
        case(&format!("{name}: FINISH of another size"), says(open.clone(), finish(u64::MAX - 1)), VIOLATION);
        if name != "stream" {
            case(&format!("{name}: FINISH without data"), says(open, finish(size)), VIOLATION);
        }
    }
    // Texts.
    let bad_text = |to_length: u8, tail: &[u8]| {
        let mut fixed = vec![9; 16];
        fixed.extend(1_u64.to_be_bytes());
        fixed.extend([0, to_length, 0]);
        raw(0x90, &fixed, tail)
    };
    case("a text for a name longer than the text", bad_text(9, b"abc"), VIOLATION);
    case("a text for a name of 33 bytes", bad_text(33, &[b'x'; 40]), VIOLATION);
    case("a text for a name that is none", bad_text(3, b"a b text"), VIOLATION);
    case("a text that is no UTF-8", bad_text(0, b"\xff\xfe"), VIOLATION);
    let longest = Text { run: RunId([8; 16]), text: "x".repeat(65_536), ..text(1) };
    case("a text of 64 KiB", bytes(&[Message::Text(longest)]), Answer::Nothing);
    case(
        "a text of 64 KiB and a byte",
        raw(0x90, &[[9; 16].as_slice(), &[0; 11]].concat(), &[b'x'; 65_537]),
        VIOLATION,
    );
    let nobody = Text { to: Some(Nickname::parse(b"nobody").unwrap()), ..text(1) };
    case("a text for nobody", bytes(&[Message::Text(nobody)]), Answer::No(Refusal::Nobody));
    let presence = Message::Presence(Presence::Joined(Nickname::parse(b"liar").unwrap()));
    case("a client that says who came", bytes(&[presence]), Answer::Nothing);
    // Requests.
    let get = |request, path: &[u8]| Message::Get { request, from: None, path: path.to_vec() };
    for path in [&b".."[..], b"../up", b"/etc/passwd", b"", b"a\0b", b"a//b"] {
        let name = format!("GET {}", String::from_utf8_lossy(path).escape_debug());
        case(&name, bytes(&[get(1, path)]), Answer::No(Refusal::BadName));
    }
    case("GET of a link", bytes(&[get(1, b"link")]), Answer::No(Refusal::NotFound));
    case("GET through a link", bytes(&[get(1, b"link/passwd")]), Answer::No(Refusal::NotFound));
    case("GET of a FIFO", bytes(&[get(1, b"fifo")]), Answer::No(Refusal::NotFound));
    case("GET of what is not there", bytes(&[get(1, b"none")]), Answer::No(Refusal::NotFound));
    case("a request with number 0", bytes(&[get(0, b"x")]), VIOLATION);
    case("a request number used twice", bytes(&[get(1, b"file"), get(1, b"file")]), VIOLATION);
    let sixteen: Vec<Message> = (1..=16).map(|request| get(request, b"file")).collect();
    case("16 open requests", bytes(&sixteen), Answer::Nothing);
    let seventeen: Vec<Message> = (1..=17).map(|request| get(request, b"file")).collect();
    case("17 open requests", bytes(&seventeen), VIOLATION);
    let list = Message::List { request: 1, from: None, after: b"../up".to_vec() };
    case("LIST after a bad name", bytes(&[list]), Answer::No(Refusal::BadName));
    // Relaying. Nobody is in the room.
    let to = |to: &str| Some(vec![Nickname::parse(to.as_bytes()).unwrap()]);
    let relays = |count: u32| (1..=count).map(|number| relay(number, false, to("b7")));
    let under = |count, number| bytes(&relays(count).chain([for_others(1, number, 1)]).collect::<Vec<_>>());
    case("an offer under a RELAY never said", under(0, 1), VIOLATION);
    case("an offer under the first of 16 RELAYs", under(16, 1), Answer::Nothing);
    case("an offer under the first of 17 RELAYs", under(17, 1), VIOLATION);
    let Message::Offer(answer) = for_others(1, 1, 1) else { unreachable!() };
    let answers = Message::Offer(Offer { request: 1, ..answer });
    case("an offer for others and for a request", bytes(&[relay(1, false, to("b7")), answers]), VIOLATION);
    let everybody = [relay(1, false, None), for_others(1, 1, 1)];
    case("an offer for an empty room", bytes(&everybody), Answer::No(Refusal::Nobody));
    let nobody = Message::Relay(Relay { relay: 1, patience_seconds: 0, leave: false, to: to("b7") });
    case("an offer for who is not there", bytes(&[nobody, for_others(1, 1, 1)]), Answer::No(Refusal::Nobody));
    let raw_relay = |flags: u8, tail: &[u8]| raw(0xad, &[&[0, 0, 0, 1][..], &[0; 4], &[flags]].concat(), tail);
    case("a RELAY for no nickname", raw_relay(0, b""), VIOLATION);
    case("a RELAY for two spaces", raw_relay(0, b"a  b"), VIOLATION);
    case("a RELAY for everybody and one", raw_relay(2, b"a"), VIOLATION);
    let full = [&b"a "[..]; 4095].concat();
    case("a RELAY of 8 KiB to the byte", raw_relay(0, &[&full[..], b"ab"].concat()), Answer::Nothing);
    case("a RELAY of 8 KiB and a byte", raw_relay(0, &[&full[..], b"abc"].concat()), VIOLATION);
    let nickname = Nickname::parse(b"b7").unwrap();
    let relayed = wire::Relayed { item: 1, nickname: nickname.clone(), outcome: Err(Refusal::Nobody), last: true };
    case("a client that says what became of a file", bytes(&[Message::Relayed(relayed)]), Answer::Nothing);
    let from = Some(nickname);
    let absent = Message::Get { request: 1, from: from.clone(), path: b"x".to_vec() };
    case("GET from who is not there", bytes(std::slice::from_ref(&absent)), Answer::No(Refusal::Nobody));
    case("a request of others with a number used twice", bytes(&[absent.clone(), absent]), VIOLATION);
    let up = Message::Get { request: 1, from: from.clone(), path: b"../up".to_vec() };
    case("GET of a bad name from others", bytes(&[up]), Answer::No(Refusal::BadName));
    let list = Message::List { request: 1, from, after: Vec::new() };
    case("LIST from who is not there", bytes(&[list]), Answer::No(Refusal::Nobody));
    let for_server = [relay(1, true, to("server")), for_others(1, 1, 1)];
    case("a file left for a nickname that nobody can have", bytes(&for_server), Answer::No(Refusal::Nobody));
    let for_server = Text { to: Nickname::parse(b"server").ok(), leave: true, ..text(9) };
    case("a text left for one", bytes(&[Message::Text(for_server)]), Answer::No(Refusal::Nobody));
    // Frames.
    case("an unknown type", raw(0x8f, &[], b""), Answer::End);
    case("a printable byte", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Answer::End);
    case("a type that may be skipped", raw(0xd0, &[], b"whatever"), Answer::Nothing);
    case("a tail of as much as its limit, to be skipped", raw(0xd0, &[], &[0; 65_536]), Answer::Nothing);
    case("a tail past its limit, to be skipped", raw(0xd0, &[], &[0; 65_537]), VIOLATION);
    case("a fixed field too few", raw(0x87, &[0; 7], b""), Answer::End);
    case("an empty SUMS", raw(0xa5, &[0; 8], b""), VIOLATION);
    case("half a CRC in SUMS", raw(0xa5, &[0; 8], b"abc"), VIOLATION);
    case(
        "nanoseconds past a second",
        raw(0xa0, &[&[0, 0, 0, 1, 0][..], &[0; 16], &[0xff; 4], &[0; 20]].concat(), b"x"),
        VIOLATION,
    );
    let mut huge = raw(0x87, &[0; 8], b"");
    huge[1..9].copy_from_slice(&u64::MAX.to_be_bytes());
    case("a length of 2^64-1, damaged", huge.clone(), Answer::End);
    let end = huge.len();
    let crc = crc32fast::hash(&huge[..end - 4]);
    huge[end - 4..].copy_from_slice(&crc.to_be_bytes());
    case("a length of 2^64-1, meant", huge, VIOLATION);
    case("a pong that nobody asked for", bytes(&[Message::Pong(u64::MAX)]), Answer::Nothing);
    cases
}

/// A frame of any type with right CRCs.
fn raw(frame_type: u8, fixed: &[u8], tail: &[u8]) -> Vec<u8> {
    let mut frame = vec![frame_type];
    frame.extend(u64::try_from(fixed.len() + 8 + tail.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(fixed);
    frame.extend(crc32fast::hash(tail).to_be_bytes());
    frame.extend(crc32fast::hash(&frame).to_be_bytes());
    frame.extend_from_slice(tail);
    frame
}

/// Says `said` after a good hello, then PING; gives what came of it.
fn answer(address: &str, number: u8, said: &[u8]) -> Answer {
    let (mut stream, mut frames, mut decoder) = session(address, &peer(number));
    // The other side may end before it has heard it all.
    let _ = stream.write_all(said).and_then(|()| stream.write_all(&bytes(&[Message::Ping(77)])));
    let mut asked_again = false;
    loop {
        match frames.next(&mut decoder) {
            None => return Answer::End,
            Some(Frame::Message(Message::Refused { subject: Subject::Connection, refusal })) => {
                let after = frames.next(&mut decoder);
                assert!(after.is_none(), "REFUSED is the last word, not {after:?}");
                return Answer::Refused(refusal);
            }
            Some(Frame::Message(Message::Refused { refusal, .. })) => return Answer::No(refusal),
            // The disk may take a moment longer than the answer to a PING.
            Some(Frame::Message(Message::Pong(77))) if !asked_again => {
                asked_again = true;
                thread::park_timeout(Duration::from_millis(150));
                let _ = stream.write_all(&bytes(&[Message::Ping(78)]));
            }
            Some(Frame::Message(Message::Pong(78))) => return Answer::Nothing,
            Some(_) => {}
        }
    }
}

/// A connection after a good hello.
fn session(address: &str, peer: &Message) -> (TcpStream, Frames, Decoder) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&bytes(&[hello(), peer.clone()])).unwrap();
    let mut decoder = Decoder::for_client();
    let mut frames = Frames::of(&stream);
    for _ in 0..3 {
        assert!(matches!(frames.next(&mut decoder), Some(Frame::Message(_))), "the hello");
    }
    decoder.hello_complete();
    (stream, frames, decoder)
}

#[test]
fn each_lie_to_a_server_has_its_answer() {
    let scratch = Scratch::new();
    let (inbox, share) = (scratch.directory("inbox"), scratch.directory("share"));
    scratch.file("share/file", 300_000, 1);
    std::os::unix::fs::symlink("/etc", format!("{share}/link")).unwrap();
    let fifo = format!("{share}/fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let arguments = ["--dir", &inbox, "--share", &share, "--max-file", "1M", "--no-fsync"];
    let server = Server::start(&arguments);
    let cases = cases();
    assert!(cases.len() >= 80, "{} cases", cases.len());
    for (number, (name, said, expected)) in cases.iter().enumerate() {
        println!("{name}");
        let got = answer(&server.address(), u8::try_from(number % 200 + 10).unwrap(), said);
        assert_eq!(got, *expected, "{name}");
        if number % 10 == 0 {
            client(&["--to", &server.address(), "--text", "honest"]).assert_code(0);
        }
    }
    let honest = scratch.file("honest", 700_000, 2);
    client(&["--to", &server.address(), &honest]).assert_code(0);
    let names: Vec<_> = fs::read_dir(scratch.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "nothing came to be outside: {names:?}");
    let run = server.terminate();
    run.assert_code(0).assert(!run.stderr.contains("panicked"), "nobody panicked");
}

#[test]
fn before_the_hello_only_the_hello_is_taken() {
    let server = Server::start(&[]);
    for (name, message) in one_of_each() {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&bytes(&[message])).unwrap();
        if name == "hello" {
            stream.write_all(&bytes(&[Message::Goodbye(Goodbye::Done)])).unwrap();
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        // Nothing, or one REFUSED: no WELCOME.
        assert!(answer.is_empty() || answer[0] == 0x84, "{name}: {answer:02x?}");
    }
    client(&["--to", &server.address(), "--text", "honest"]).assert_code(0);
}

#[test]
fn a_good_session_may_end_at_any_byte() {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let server = Server::start(&["--dir", &inbox, "--no-fsync"]);
    let session =
        bytes(&[hello(), peer(3), Message::Text(text(1)), Message::Offer(offer(1, 5, b"f")), Message::Ping(1)]);
    for end in 0..=session.len() {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(&session[..end]).unwrap();
    }
    // More strangers than one address may have: whoever comes now may be turned away until the server has seen them end.
    client(&["--to", &server.address(), "--retry", "20s", "--text", "honest"]).assert_code(0);
    let run = server.terminate();
    run.assert_code(0).assert(!run.stderr.contains("panicked"), "nobody panicked");
    assert!(run.stdout.lines().filter(|line| line.ends_with(": x")).count() <= 1, "one run's text comes once");
}

/// Says who it is, as one that joins the room.
fn member(number: u8) -> Message {
    let Message::Peer(peer) = peer(number) else { unreachable!() };
    Message::Peer(Peer { in_room: true, ..peer })
}

#[test]
fn no_more_texts_are_taken_unhandled_than_the_window_allows() {
    // The application takes no events here, so that no text is handled.
    let server = postwire::Server::bind("127.0.0.1:0", postwire::Config::default()).unwrap();
    let (mut stream, mut frames, mut decoder) = session(&server.local_addr().to_string(), &peer(1));
    let long = |sequence| Message::Text(Text { text: "x".repeat(65_536), ..text(sequence) });
    // Four fill the window, and one is always taken.
    stream.write_all(&bytes(&(1..=5).map(long).collect::<Vec<_>>())).unwrap();
    stream.write_all(&bytes(&[Message::Ping(1)])).unwrap();
    assert_eq!(frames.next(&mut decoder), Some(Frame::Message(Message::Pong(1))));
    assert_eq!(server.bytes_available(), 5 * 65_536);
    stream.write_all(&bytes(&[long(6)])).unwrap();
    let refused = Message::Refused { subject: Subject::Connection, refusal: Refusal::Protocol };
    assert_eq!(frames.next(&mut decoder), Some(Frame::Message(refused)));
    assert_eq!(frames.next(&mut decoder), None);
    server.stop();
}

#[test]
fn whoever_is_refused_is_not_listened_to_for_long() {
    let server = Server::start(&[]);
    // Words without an end, and one byte at a time.
    for (piece, pause) in [(vec![b'x'; 4096], Duration::ZERO), (vec![b'x'], Duration::from_millis(50))] {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let started = Instant::now();
        while stream.write_all(&piece).is_ok() {
            // A second; the rest is for a loaded machine.
            assert!(started.elapsed() < Duration::from_secs(10), "still listened to");
            thread::park_timeout(pause);
        }
    }
    client(&["--to", &server.address(), "--text", "honest"]).assert_code(0);
}

#[test]
fn whoever_joins_beside_others_hears_the_hello_first() {
    let server = Server::start(&[]);
    let address = server.address();
    for round in 0..5 {
        thread::scope(|scope| {
            // `session` fails where anything comes before or in the hello.
            for number in round * 40..(round + 1) * 40 {
                let address = &address;
                scope.spawn(move || drop(session(address, &member(number))));
            }
        });
    }
}

#[test]
fn readers_that_stall_are_cut_off_and_the_others_hear_everything() {
    const READERS: u8 = 90;
    const STALLED: u8 = 10;
    // More than waits for anybody, in texts of which two are less than a slow reader may leave for long.
    const TEXTS: usize = OUTBOX_BYTES_MAX / TEXT_BYTES + 4;
    const TEXT_BYTES: usize = 60_000;
    let mut server = Server::start(&[]);
    let stalled: Vec<_> = (0..STALLED).map(|number| session(&server.address(), &member(number + 200))).collect();
    let readers: Vec<_> = (0..READERS).map(|number| session(&server.address(), &member(number))).collect();
    let heard: Vec<AtomicUsize> = (0..READERS).map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|scope| {
        for ((number, heard), reader) in heard.iter().enumerate().zip(readers) {
            let (mut stream, mut frames, mut decoder) = reader;
            scope.spawn(move || {
                for count in 1..=TEXTS {
                    let text = loop {
                        match frames.next(&mut decoder) {
                            Some(Frame::Message(Message::Text(text))) => break text,
                            Some(_) => {}
                            None => panic!("reader {number} was cut off at text {count}"),
                        }
                    };
                    assert!(text.text.starts_with(&format!("{count} ")), "in order and all of them");
                    stream.write_all(&bytes(&[Message::TextAck { count: u64::try_from(count).unwrap() }])).unwrap();
                    heard.store(count, Ordering::SeqCst);
                }
            });
        }
        (0..STALLED + READERS).for_each(|_| drop(server.wait_stderr(|line| line.ends_with(" joined"))));
        for count in 1..=TEXTS {
            server.type_line(&format!("{count} {}", "x".repeat(TEXT_BYTES)));
            until("all readers", || heard.iter().all(|heard| heard.load(Ordering::SeqCst) + 1 >= count).then_some(()));
        }
    });
    (0..STALLED + READERS).for_each(|_| drop(server.wait_stderr(|line| line.ends_with(" left"))));
    for (_, mut frames, mut decoder) in stalled {
        // What was sent before it was cut off: no more than it said that it takes.
        let texts = std::iter::from_fn(|| frames.next(&mut decoder));
        let texts = texts.filter(|frame| matches!(frame, Frame::Message(Message::Text(_)))).count();
        assert!((1..=TEXT_WINDOW_BYTES / TEXT_BYTES).contains(&texts), "{texts}");
    }
    client(&["--to", &server.address(), "--text", "honest"]).assert_code(0);
    server.terminate().assert_code(0);
}

#[test]
fn a_client_may_ask_for_the_data_of_four_larger_files_at_once() {
    let scratch = Scratch::new();
    for number in 0..6 {
        scratch.file(&format!("share/d/f{number}"), 300_000, number);
    }
    let server = Server::start(&["--share", &scratch.path("share")]);
    for (asked, is_too_much) in [(OPEN_TRANSFERS_MAX, false), (OPEN_TRANSFERS_MAX + 1, true)] {
        let (mut stream, mut frames, mut decoder) = session(&server.address(), &peer(u8::try_from(asked).unwrap()));
        let mut message = || match frames.next(&mut decoder) {
            Some(Frame::Message(message)) => message,
            other => panic!("{other:?}"),
        };
        stream.write_all(&bytes(&[Message::Get { request: 1, from: None, path: b"d".to_vec() }])).unwrap();
        let mut numbers = Vec::new();
        while numbers.len() < 7 {
            let Message::Offer(offer) = message() else { panic!("no offer") };
            numbers.push(offer.transfer);
        }
        // The last is the directory.
        numbers.pop();
        let send = |&transfer| Message::Send { transfer, have: 0, credit: 0 };
        stream.write_all(&bytes(&numbers.iter().take(asked).map(send).collect::<Vec<_>>())).unwrap();
        stream.write_all(&bytes(&[Message::Ping(1)])).unwrap();
        match message() {
            Message::Pong(1) => assert!(!is_too_much),
            Message::Refused { subject: Subject::Connection, refusal: Refusal::Protocol } => assert!(is_too_much),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn thousands_that_wait_for_a_place_may_all_be_refused() {
    let scratch = Scratch::new();
    let server = Server::start(&["--dir", &scratch.directory("inbox"), "--max-file", "1M"]);
    let (mut stream, mut frames, mut decoder) = session(&server.address(), &peer(1));
    let mut message = || match frames.next(&mut decoder) {
        Some(Frame::Message(message)) => message,
        other => panic!("{other:?}"),
    };
    let offers = |numbers: RangeInclusive<u32>, size| -> Vec<Message> {
        numbers
            .map(|n| Message::Offer(Offer { content_crc: 0, ..offer(n, size, format!("f{n}").as_bytes()) }))
            .collect()
    };
    let open = u32::try_from(OPEN_TRANSFERS_MAX).unwrap();
    stream.write_all(&bytes(&offers(1..=open, 1 << 20))).unwrap();
    (0..open).for_each(|_| assert!(matches!(message(), Message::Send { .. })));
    stream.write_all(&bytes(&offers(open + 1..=4090, 2 << 20))).unwrap();
    // All that came before is taken in.
    stream.write_all(&bytes(&[Message::Ping(1)])).unwrap();
    while !matches!(message(), Message::Pong(1)) {}
    stream.write_all(&bytes(&[Message::Cancel { transfer: 1, reason: CancelReason::GivenUp }])).unwrap();
    let last = Subject::Transfer(4090);
    while !matches!(message(), Message::Refused { subject, refusal: Refusal::TooBig(_) } if subject == last) {}
    client(&["--to", &server.address(), "--text", "honest"]).assert_code(0);
}

#[test]
fn a_small_file_that_is_wanted_again_keeps_nobody_waiting() {
    let scratch = Scratch::new();
    (1..=2).for_each(|number| drop(scratch.file(&format!("share/d/f{number}"), 1000, number)));
    let server = Server::start(&["--share", &scratch.path("share")]);
    let (mut stream, mut frames, mut decoder) = session(&server.address(), &peer(1));
    let mut says = |messages: &[Message]| stream.write_all(&bytes(messages)).unwrap();
    let mut message = || match frames.next(&mut decoder) {
        Some(Frame::Message(message)) => message,
        other => panic!("{other:?}"),
    };
    says(&[Message::Get { request: 1, from: None, path: b"d".to_vec() }]);
    while !matches!(message(), Message::Offer(Offer { transfer: 2, .. })) {}
    let send = |transfer| Message::Send { transfer, have: 0, credit: 1 << 20 };
    says(&[send(1)]);
    while !matches!(message(), Message::Finish { transfer: 1, .. }) {}
    says(&[Message::Repair { transfer: 1, offset: 0, length: 1000 }]);
    while !matches!(message(), Message::Chunk(Chunk { transfer: 1, .. })) {}
    says(&[send(2)]);
    while !matches!(message(), Message::Finish { transfer: 2, .. }) {}
}

#[test]
fn small_files_that_are_begun_and_left_hold_few_descriptors() {
    const FILES: u32 = 200;
    let scratch = Scratch::new();
    let server = Server::start(&["--dir", &scratch.directory("inbox"), "--no-fsync"]);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", server.pid().as_raw_nonzero())).unwrap().count();
    let (mut stream, mut frames, mut decoder) = session(&server.address(), &peer(1));
    let mut message = || match frames.next(&mut decoder) {
        Some(Frame::Message(message)) => message,
        other => panic!("{other:?}"),
    };
    let offers: Vec<Message> = (1..=FILES).map(|n| Message::Offer(offer(n, 10, format!("f{n}").as_bytes()))).collect();
    stream.write_all(&bytes(&offers)).unwrap();
    let answered = (0..FILES).filter(|_| matches!(message(), Message::Send { .. })).count();
    assert_eq!(u32::try_from(answered), Ok(FILES));
    let before = descriptors();
    // Half of each.
    let halves: Vec<Message> = (1..=FILES).map(|number| chunk(number, 0, b"12345")).collect();
    stream.write_all(&bytes(&halves)).unwrap();
    let mut asked_again = Vec::new();
    let mut acknowledged = Vec::new();
    while acknowledged.len() < usize::try_from(FILES).unwrap() {
        match message() {
            Message::Repair { transfer, offset: 0, length: 5 } => asked_again.push(transfer),
            Message::Ack { transfer, received: 5, .. } => acknowledged.push(transfer),
            other => panic!("{other:?}"),
        }
    }
    let begun = u32::try_from(SMALL_FILES_BEGUN_MAX).unwrap();
    assert_eq!(asked_again, (begun + 1..=FILES).collect::<Vec<_>>());
    assert!(descriptors() <= before + 2 * SMALL_FILES_BEGUN_MAX, "{before}, then {}", descriptors());
    // The first is sent to its end: now the next has a place.
    let rest = [chunk(1, 5, b"67890"), Message::Finish { transfer: 1, size: 10, crc: 1, grew: false }];
    stream.write_all(&bytes(&rest)).unwrap();
    while !matches!(message(), Message::Refused { subject: Subject::Transfer(1), refusal: Refusal::Damaged }) {}
    stream.write_all(&bytes(&[chunk(begun + 1, 0, b"12345"), chunk(begun + 2, 0, b"12345")])).unwrap();
    let (mut taken, mut asked_again) = (false, Vec::new());
    while !taken || asked_again.is_empty() {
        match message() {
            // Others are said again with the credit that the first one left.
            Message::Ack { transfer, received, .. } => taken |= transfer == begun + 1 && received == 10,
            Message::Repair { transfer, offset: 0, length: 5 } => asked_again.push(transfer),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(asked_again, [begun + 2]);
}

/// What a server says after a good hello, to a client that sends a file.
#[test]
fn each_lie_to_a_client_ends_its_run_with_a_clear_line() {
    let scratch = Scratch::new();
    let file = scratch.file("file", 300_000, 1);
    let liars: Vec<(&str, Vec<Message>)> = vec![
        ("a second WELCOME", vec![Message::Welcome { version: 1, mode: 0 }]),
        ("SEND with more than the size", vec![Message::Send { transfer: 1, have: u64::MAX, credit: 1 << 20 }]),
        ("SEND off a block", vec![Message::Send { transfer: 1, have: 1000, credit: 1 << 20 }]),
        ("SEND for another transfer", vec![Message::Send { transfer: 2, have: 0, credit: 1 << 20 }]),
        ("ACK before SEND", vec![Message::Ack { transfer: 1, received: 1, credit: 1 }]),
        (
            "ACK for what was not sent",
            vec![
                Message::Send { transfer: 1, have: 0, credit: 0 },
                Message::Ack { transfer: 1, received: 9, credit: 0 },
            ],
        ),
        (
            "REPAIR outside the file",
            vec![
                Message::Send { transfer: 1, have: 0, credit: 0 },
                Message::Repair { transfer: 1, offset: u64::MAX, length: u64::MAX },
            ],
        ),
        (
            "RECEIPT before anything was sent",
            vec![Message::Receipt(Receipt {
                transfer: 1,
                durable: true,
                already: false,
                size: 300_000,
                resumed: 0,
                crc: 1,
                stored: b"file".to_vec(),
            })],
        ),
        ("TEXT_ACK for nothing", vec![Message::TextAck { count: 3 }]),
        ("ENDED for nothing", vec![Message::Ended { request: 1, more: false, left_out: 0, failed: 0 }]),
    ];
    for (name, says) in liars {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let liar = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let named = Message::Named(Nickname::parse(b"c1").unwrap());
            stream.write_all(&bytes(&[Message::Welcome { version: 1, mode: 0 }, peer(2), named])).unwrap();
            let mut frames = Frames::of(&stream);
            let mut decoder = Decoder::for_server();
            while !matches!(frames.next(&mut decoder), Some(Frame::Message(Message::Offer(_)))) {
                decoder.hello_complete();
            }
            stream.write_all(&bytes(&says)).unwrap();
            // The client ends the connection.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let run = client(&["--to", &address, "--retry", "0", &file]);
        run.assert_code(5);
        run.assert(run.stderr.contains("protocol rule"), name);
        liar.join().unwrap();
    }
}

#[test]
fn a_client_in_the_room_takes_no_flood_and_no_file_it_has_no_place_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut board = client_spawn(&["--to", &address, "--stay", "--retry", "0"]);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let named = Message::Named(Nickname::parse(b"c1").unwrap());
    stream.write_all(&bytes(&[Message::Welcome { version: 1, mode: 0 }, peer(2), named.clone()])).unwrap();
    let came = Message::Presence(Presence::Joined(Nickname::parse(b"x").unwrap()));
    for _ in 0..100 {
        stream.write_all(&bytes(&vec![came.clone(); 100])).unwrap();
        stream.write_all(&bytes(&vec![named.clone(); 10])).unwrap();
    }
    stream.write_all(&bytes(&[Message::Offer(offer(1, 5, b"x"))])).unwrap();
    let mut frames = Frames::of(&stream);
    let mut decoder = Decoder::for_server();
    let refused = loop {
        match frames.next(&mut decoder).expect("an answer to the offer") {
            Frame::Message(Message::Refused { subject: Subject::Transfer(1), refusal }) => break refusal,
            _ => decoder.hello_complete(),
        }
    };
    assert_eq!(refused, Refusal::NoDirectory);
    let kib = board.peak_memory_kib();
    assert!(kib < 64 * 1024, "{kib} KiB");
    board.signal(common::Signal::TERM);
    board.wait().assert_code(0);
}

/// Nicknames of two bytes and a space.
fn nicknames(count: usize) -> Vec<Nickname> {
    let all =
        (b'a'..=b'z').flat_map(|one| (b'0'..=b'9').chain(b'A'..=b'Z').chain(b'a'..=b'z').map(move |two| [one, two]));
    all.chain((b'A'..=b'Z').flat_map(|one| (b'A'..=b'Z').chain(b'a'..=b'z').map(move |two| [one, two])))
        .take(count)
        .map(|name| Nickname::parse(&name).unwrap())
        .collect()
}

fn relay(relay: u32, leave: bool, to: Option<Vec<Nickname>>) -> Message {
    Message::Relay(Relay { relay, patience_seconds: 3600, leave, to })
}

/// An empty file for those of a RELAY.
fn for_others(transfer: u32, relay: u32, item: u32) -> Message {
    let path = format!("f{transfer}").into_bytes();
    Message::Offer(Offer { content_crc: 0, relay, item, path, ..offer(transfer, 0, b"") })
}

/// What becomes of a file for others, when all of it is asked for.
fn fate(stream: &mut TcpStream, frames: &mut Frames, decoder: &mut Decoder, number: u32) -> Message {
    loop {
        match frames.next(decoder) {
            Some(Frame::Message(Message::Send { transfer, .. })) if transfer == number => {
                let finish = Message::Finish { transfer, size: 0, crc: 0, grew: false };
                stream.write_all(&bytes(&[finish])).unwrap();
            }
            Some(Frame::Message(Message::Receipt(receipt))) if receipt.transfer == number => {
                return Message::Receipt(receipt);
            }
            Some(Frame::Message(refused @ Message::Refused { .. })) => return refused,
            Some(_) => {}
            None => panic!("the connection ended"),
        }
    }
}

#[test]
fn so_much_may_be_left_and_not_one_more() {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let server = Server::start(&["--dir", &inbox, "--no-fsync"]);
    let kept = |part| fs::read_dir(format!("{inbox}/.postwire-relay-0.part/{part}")).unwrap().count();
    let (mut stream, mut frames, mut decoder) = session(&server.address(), &peer(1));
    let half = LEFT_MAX / 2;
    let two = Some(nicknames(2));
    stream
        .write_all(&bytes(&[
            relay(1, true, Some(nicknames(half - 1))),
            relay(2, true, Some(nicknames(half))),
            relay(3, true, two),
        ]))
        .unwrap();
    let mut leave = |number, relay| {
        stream.write_all(&bytes(&[for_others(number, relay, number)])).unwrap();
        fate(&mut stream, &mut frames, &mut decoder, number)
    };
    assert!(matches!(leave(1, 1), Message::Receipt(_)));
    assert!(matches!(leave(2, 2), Message::Receipt(_)));
    assert_eq!((kept("files"), kept("notes")), (2, LEFT_MAX - 1));
    // There is room for one of two: it is left for none of them, and the file does not stay.
    let too_much = |number| Message::Refused { subject: Subject::Transfer(number), refusal: Refusal::TooMuch };
    assert_eq!(leave(3, 3), too_much(3));
    until("the file to go", || (kept("files") == 2).then_some(()));
    assert_eq!(kept("notes"), LEFT_MAX - 1);
    let text = |number| Text { to: Some(Nickname::parse(b"b7").unwrap()), leave: true, ..text(number) };
    assert_eq!(answer(&server.address(), 2, &bytes(&[Message::Text(text(1))])), Answer::Nothing);
    assert_eq!(answer(&server.address(), 2, &bytes(&[Message::Text(text(2))])), Answer::No(Refusal::TooMuch));
    assert_eq!(kept("notes"), LEFT_MAX);
}

/// As a client in the room with that nickname.
fn board(number: u8, nickname: &str) -> Message {
    let Message::Peer(peer) = member(number) else { unreachable!() };
    Message::Peer(Peer { nickname: Some(Nickname::parse(nickname.as_bytes()).unwrap()), ..peer })
}

/// The next message that the closure takes.
fn wait_for<T>(frames: &mut Frames, decoder: &mut Decoder, wanted: impl Fn(Message) -> Option<T>) -> T {
    loop {
        match frames.next(decoder) {
            Some(Frame::Message(message)) => {
                if let Some(found) = wanted(message) {
                    return found;
                }
            }
            Some(_) => {}
            None => panic!("the connection ended"),
        }
    }
}

#[test]
fn what_was_asked_for_another_is_never_stored_as_the_servers_own() {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let server = Server::start(&["--dir", &inbox, "--no-fsync"]);
    let address = server.address();
    let asks = |message| match message {
        Message::Get { request, from: None, path } if path == b"core" => Some(request),
        _ => None,
    };
    let refused = |message| match message {
        Message::Refused { subject: Subject::Transfer(number), refusal } => Some((number, refusal)),
        Message::Send { transfer, .. } => panic!("{transfer} is taken"),
        _ => None,
    };
    let get = Message::Get { request: 1, from: Nickname::parse(b"b7").ok(), path: b"core".to_vec() };
    let core = |request| Message::Offer(Offer { request, ..offer(1, 10, b"core") });
    // Another has the nickname now, and is asked instead.
    let (mut first, mut first_frames, mut first_decoder) = session(&address, &board(1, "b7"));
    let (mut asker, ..) = session(&address, &board(3, "ann"));
    asker.write_all(&bytes(&[get])).unwrap();
    let request = wait_for(&mut first_frames, &mut first_decoder, asks);
    first.write_all(&bytes(&[Message::Named(Nickname::parse(b"b8").unwrap())])).unwrap();
    wait_for(&mut first_frames, &mut first_decoder, |message| matches!(message, Message::Named(_)).then_some(()));
    let (mut second, mut second_frames, mut second_decoder) = session(&address, &board(2, "b7"));
    let second_request = wait_for(&mut second_frames, &mut second_decoder, asks);
    first.write_all(&bytes(&[core(request)])).unwrap();
    assert_eq!(wait_for(&mut first_frames, &mut first_decoder, refused), (1, Refusal::Nobody));
    // Its end means nothing any more.
    let ended = |request| Message::Ended { request, more: false, left_out: 0, failed: 0 };
    first.write_all(&bytes(&[ended(request), Message::Ping(7)])).unwrap();
    wait_for(&mut first_frames, &mut first_decoder, |message| (message == Message::Pong(7)).then_some(()));
    // Whoever asked is gone.
    drop(asker);
    let left = Message::Presence(Presence::Left(Nickname::parse(b"ann").unwrap()));
    wait_for(&mut second_frames, &mut second_decoder, |message| (message == left).then_some(()));
    second.write_all(&bytes(&[core(second_request)])).unwrap();
    assert_eq!(wait_for(&mut second_frames, &mut second_decoder, refused), (1, Refusal::Nobody));
    let names: Vec<_> = fs::read_dir(&inbox).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [".postwire-relay-0.part"]);
}

#[test]
fn a_server_has_so_much_for_others_and_not_one_more() {
    const AT_ONCE: usize = 2048;
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let server = Server::start(&["--dir", &inbox, "--no-fsync"]);
    let files = u32::try_from(RELAYED_MAX / AT_ONCE).unwrap();
    let relays = bytes(&[relay(1, false, Some(nicknames(AT_ONCE))), relay(2, false, Some(nicknames(1)))]);
    let too_much = |number| Message::Refused { subject: Subject::Transfer(number), refusal: Refusal::TooMuch };
    // What is offered counts, and what was offered twice under one item counts once; all of it goes with its run.
    for run in 1..=3 {
        let (mut stream, mut frames, mut decoder) = session(&server.address(), &peer(run));
        stream.write_all(&relays).unwrap();
        let twice: Vec<Message> = (1..=files).map(|number| for_others(number, 1, number.div_ceil(2))).collect();
        stream.write_all(&bytes(&twice)).unwrap();
        stream.write_all(&bytes(&[for_others(files + 1, 2, files)])).unwrap();
        let mut numbers = Vec::new();
        while numbers.len() < usize::try_from(files).unwrap() {
            wait_for(&mut frames, &mut decoder, |message| match message {
                Message::Send { transfer, .. } => Some(transfer),
                _ => None,
            });
            numbers.push(u32::try_from(numbers.len()).unwrap() + 1);
        }
        let refused = wait_for(&mut frames, &mut decoder, |message| {
            matches!(message, Message::Refused { .. }).then_some(message)
        });
        assert_eq!(refused, too_much(files + 1));
        let finish = |&transfer: &u32| Message::Finish { transfer, size: 0, crc: 0, grew: false };
        stream.write_all(&bytes(&numbers.iter().map(finish).collect::<Vec<_>>())).unwrap();
        for _ in &numbers {
            wait_for(&mut frames, &mut decoder, |message| matches!(message, Message::Receipt(_)).then_some(()));
        }
        // Half of them are there twice.
        for number in files + 2..files + 2 + files / 2 {
            stream.write_all(&bytes(&[for_others(number, 1, number)])).unwrap();
            let fate = fate(&mut stream, &mut frames, &mut decoder, number);
            assert!(matches!(fate, Message::Receipt(_)), "{fate:?}");
        }
        let number = 3 * files;
        stream.write_all(&bytes(&[for_others(number, 2, number)])).unwrap();
        assert_eq!(fate(&mut stream, &mut frames, &mut decoder, number), too_much(number));
        stream.write_all(&bytes(&[Message::Goodbye(Goodbye::Done)])).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        while frames.next(&mut decoder).is_some() {}
        let kept = || fs::read_dir(format!("{inbox}/.postwire-relay-0.part/files")).unwrap().count();
        until("an empty spool", || (kept() == 0).then_some(()));
    }
}

#[test]
fn what_is_left_for_a_slow_reader_comes_as_it_reads() {
    const TEXT_BYTES: usize = 65_536;
    let scratch = Scratch::new();
    let server = Server::start(&["--dir", &scratch.directory("inbox"), "--no-fsync"]);
    let (mut stream, mut frames, mut decoder) = session(&server.address(), &board(1, "b7"));
    // More than waits for anybody; each run has one text on its way.
    let runs = u8::try_from(OUTBOX_BYTES_MAX / TEXT_BYTES + 4).unwrap();
    for run in 2..2 + runs {
        let to = Nickname::parse(b"b7").ok();
        let text = Text { run: RunId([run; 16]), to, leave: true, text: "x".repeat(TEXT_BYTES), ..text(1) };
        assert_eq!(answer(&server.address(), run, &bytes(&[Message::Text(text)])), Answer::Nothing);
    }
    for count in 1..=u64::from(runs) {
        wait_for(&mut frames, &mut decoder, |message| matches!(message, Message::Text(_)).then_some(()));
        stream.write_all(&bytes(&[Message::TextAck { count }])).unwrap();
    }
}
