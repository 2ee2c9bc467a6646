//! What one run is still owed, over as many connections as it takes: texts without acknowledgement and files without receipt.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::outbox::Outbox;
use super::texts::Texts;
use crate::error::Refusal;
use crate::storage::Top;
use crate::transfer::{Answer, Outbound, Pace, Report, Requests, Sharing, TransferIds};
use crate::wire::{self, Message};
use crate::worker::Lock;

/// What became of a text of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextReport {
    Delivered { sequence: u64 },
    Refused { sequence: u64, refusal: Refusal },
}

/// What all mailboxes of a process share.
pub(crate) struct MailboxContext {
    pub(crate) ids: Arc<TransferIds>,
    pub(crate) pace: Arc<Pace>,
    pub(crate) outbox: Arc<Outbox>,
    /// The directory that the other side may list and get.
    pub(crate) share: Option<Arc<Top>>,
}

/// See the module.
pub(crate) struct Mailbox {
    pub(crate) texts: Texts,
    pub(crate) files: Arc<Outbound>,
    /// What the other side may ask for.
    pub(crate) sharing: Sharing,
    /// What is asked of the other side.
    pub(crate) requests: Arc<Requests>,
    /// What became of files that came from there for others (PROTOCOL 11.4).
    outcomes: Mutex<VecDeque<wire::Relayed>>,
    link: Mutex<Link>,
}

/// Which connection the mailbox flows to.
#[derive(Default)]
struct Link {
    wake: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Counts connections: an old one that ends late must not touch a new one's state.
    epoch: u32,
}

impl Mailbox {
    pub(crate) fn new(
        context: MailboxContext,
        text_report: impl Fn(TextReport) + Send + Sync + 'static,
        report: impl Fn(Report) + Send + Sync + 'static,
        answer: impl Fn(Answer) + Send + Sync + 'static,
    ) -> Mailbox {
        let ids = Arc::clone(&context.ids);
        let files = Arc::new(Outbound::new(context.ids, context.pace, report));
        Mailbox {
            texts: Texts::new(context.outbox, text_report),
            sharing: Sharing::new(context.share, &files),
            files,
            requests: Arc::new(Requests::new(ids, answer)),
            outcomes: Mutex::default(),
            link: Mutex::default(),
        }
    }

    /// A connection stands; gives the number that stands for it.
    pub(super) fn attach(&self, peer: &wire::Peer, wake: Arc<dyn Fn() + Send + Sync>) -> u32 {
        let mut link = self.link.take();
        link.epoch += 1;
        // They are told again when the files are offered again.
        self.outcomes.take().clear();
        self.texts.attach(peer.text_window_bytes);
        self.files.attach(peer, Arc::clone(&wake));
        self.requests.attach();
        link.wake = Some(wake);
        link.epoch
    }

    /// It is gone.
    pub(super) fn detach(&self, epoch: u32) {
        let mut link = self.link.take();
        if link.epoch == epoch {
            link.wake = None;
            self.files.detach();
            self.requests.detach();
            self.texts.detach();
        }
    }

    /// Whether no newer connection took over.
    pub(super) fn is_current(&self, epoch: u32) -> bool {
        self.link.take().epoch == epoch
    }

    /// Takes what is to be said of a file that came from there, at the next [`Mailbox::wake`].
    pub(crate) fn put_outcome(&self, relayed: wire::Relayed) {
        self.outcomes.take().push_back(relayed);
    }

    pub(super) fn has_outcomes(&self) -> bool {
        !self.outcomes.take().is_empty()
    }

    /// Appends outcomes, about 32 KiB at a time.
    pub(super) fn take_outcomes(&self, out: &mut Vec<u8>) {
        const ENOUGH_BYTES: usize = 32 * 1024;
        while out.len() < ENOUGH_BYTES {
            let Some(relayed) = self.outcomes.take().pop_front() else { return };
            Message::Relayed(relayed).encode(out);
        }
    }

    /// Something was put in.
    pub(crate) fn wake(&self) {
        let wake = self.link.take().wake.clone();
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Whether everything was acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.files.is_idle() && self.requests.is_empty() && !self.has_outcomes()
    }
}
