//! The least server: binds to a port of 127.0.0.1, accepts, and forgets. `scripts/bench memory` compares its memory with ours.

fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let listener = std::net::TcpListener::bind(("127.0.0.1", port))?;
    loop {
        drop(listener.accept()?);
    }
}
