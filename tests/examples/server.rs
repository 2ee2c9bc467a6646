//! Takes texts and files, and answers each text.
//!
//! `cargo run --example server -- 127.0.0.1:7117 inbox`

use std::io::{self, Write};

use postwire::{escape, Config, Event, Result, Server};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:7117".into());
    let config = Config { dir: arguments.next().map(Into::into), ..Config::default() };

    let server = Server::bind(&address, config)?;
    say(&format!("listening on {}", server.local_addr()));
    while let Some(event) = server.next_event(None)? {
        match event {
            Event::PeerConnected { peer } => say(&format!("{} connected from {}", peer.nickname, peer.address)),
            Event::Text(text) => {
                say(&format!("text: {}", escape(text.text.as_bytes())));
                if let Some(from) = &text.from {
                    server.send_text(Some(from), "got it")?;
                }
            }
            Event::Received(receipt) => say(&format!("file: {}, {} bytes", escape(&receipt.stored), receipt.bytes)),
            Event::PeerDisconnected { peer, .. } => say(&format!("{} disconnected", peer.nickname)),
            _ => {}
        }
    }
    Ok(())
}

fn say(line: &str) {
    // Whoever closes our output does not want to hear of it.
    let _ = writeln!(io::stdout(), "{line}");
}
