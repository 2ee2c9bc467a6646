//! What one run is still owed, over as many connections as it takes: texts without acknowledgement and files without receipt.

use std::sync::{Arc, Mutex};

use super::texts::Texts;
use crate::error::Refusal;
use crate::transfer::{Outbound, Report};
use crate::wire;
use crate::worker::Lock;

/// What became of a text of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextReport {
    Delivered { sequence: u64 },
    Refused { sequence: u64, refusal: Refusal },
}

/// See the module.
pub(crate) struct Mailbox {
    pub(crate) texts: Texts,
    pub(crate) files: Arc<Outbound>,
    wake: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl Mailbox {
    pub(crate) fn new(
        text_report: impl Fn(TextReport) + Send + Sync + 'static,
        report: impl Fn(Report) + Send + Sync + 'static,
    ) -> Mailbox {
        Mailbox { texts: Texts::new(text_report), files: Arc::new(Outbound::new(report)), wake: Mutex::new(None) }
    }

    /// A connection stands.
    pub(super) fn attach(&self, peer: &wire::Peer, wake: Arc<dyn Fn() + Send + Sync>) {
        self.texts.attach(peer.text_window_bytes);
        self.files.attach(peer, Arc::clone(&wake));
        *self.wake.take() = Some(wake);
    }

    /// It is gone.
    pub(super) fn detach(&self) {
        *self.wake.take() = None;
        self.files.detach();
        self.texts.detach();
    }

    /// Something was put in.
    pub(crate) fn wake(&self) {
        let wake = self.wake.take().clone();
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Whether everything was acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.files.is_idle()
    }
}
