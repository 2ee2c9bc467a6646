//! Sends a text and a file, waits for the answer, and ends.
//!
//! `cargo run --example client -- 127.0.0.1:7117 hello FILE`

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use postwire::{escape, Client, Config, Event, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:7117".into());
    let text = arguments.next().unwrap_or_else(|| "hello".into());

    let client = Client::connect(&address, Config { join_room: true, ..Config::default() })?;
    client.wait_connected(Duration::from_secs(30))?;
    client.send_text(None, &text)?;
    if let Some(path) = arguments.next() {
        client.send_file(Path::new(&path))?;
    }
    let mut answered = false;
    while let Some(event) = client.next_event(Some(Duration::from_secs(30)))? {
        match event {
            Event::Text(answer) => {
                say(&format!("answer: {}", escape(answer.text.as_bytes())));
                answered = true;
            }
            Event::Sent(receipt) => say(&format!("stored as {}", escape(&receipt.stored))),
            Event::TransferFailed(failure) => say(&format!("not stored: {}", failure.error)),
            Event::Disconnected(Some(error)) => return Err(error),
            _ => continue,
        }
        if answered {
            // Delivers what is queued first.
            client.disconnect();
        }
    }
    Ok(())
}

fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
