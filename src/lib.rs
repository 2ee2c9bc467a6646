//! Text messages and files between machines, both ways, for many clients at once, over one framed TCP connection each.

mod client;
pub mod config;
mod conn;
mod error;
mod event;
mod hub;
mod name;
mod server;
mod session;
mod storage;
mod transfer;
#[doc(hidden)]
pub mod wire;
mod worker;

pub use client::Client;
pub use config::{Config, IfExists, Retry};
pub use error::{Error, Goodbye, Refusal, Result, Violation, WireError};
pub use event::{Event, PeerInfo, State, Text};
pub use name::{escape, escape_path, Nickname, SafeName, SafePath, Unsafe};
pub use server::Server;
pub use transfer::{Direction, Progress, Receipt, TransferFailure, TransferId};
