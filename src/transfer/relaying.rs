//! Files that come for others than this side: what [`Inbound`](super::Inbound) asks those who know the others.
//!
//! Such a file is kept in a store of its own until it has gone on, and who brought it has its receipt before it goes on.

use std::sync::Arc;

use super::{Kind, RequestId};
use crate::error::Refusal;
use crate::name::SafePath;
use crate::storage::{Meta, Store};
use crate::wire;

/// Knows whom files may go on to.
pub(crate) trait Relaying: Send + Sync {
    /// A file is offered for others (PROTOCOL 11.2).
    fn offered(&self, relay: &wire::Relay, item: u32, kind: Kind, meta: &Meta) -> Result<Way, Refusal>;
    /// A file is offered that this side asked for; `None` when it did so for itself.
    fn asked_for(&self, request: RequestId, kind: Kind, meta: &Meta) -> Option<Result<Box<dyn Passage>, Refusal>>;
}

/// What becomes of a file that is offered for others.
pub(crate) enum Way {
    Through(Box<dyn Passage>),
    /// It came on an earlier connection; what became of it since then.
    Known(Arrived, Vec<wire::Relayed>),
}

/// One file on its way through; one that is dropped did not come.
pub(crate) trait Passage: Send {
    /// As it was offered.
    fn name(&self) -> &SafePath;
    /// Where it is kept, and under which path.
    fn place(&self) -> (&Arc<Store>, &SafePath);
    /// It has come. An error refuses it.
    fn arrived(&mut self, arrived: Arrived) -> Result<(), Refusal>;
    /// Who brought it knows.
    fn go_on(self: Box<Self>);
}

/// A file that came.
#[derive(Clone)]
pub(crate) struct Arrived {
    pub(crate) size: u64,
    pub(crate) crc: u32,
    pub(crate) durable: bool,
    /// Where it is kept.
    pub(crate) stored: SafePath,
}
