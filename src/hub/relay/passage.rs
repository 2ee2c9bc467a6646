//! A file on its way through: what [`Inbound`](crate::transfer::Inbound) asks the hub about it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{note, seconds_now, Hub, Item, Key, Left, Parting, Recipient};
use crate::config::RELAYED_MAX;
use crate::error::Refusal;
use crate::name::{Nickname, SafePath};
use crate::session::Mailbox;
use crate::storage::{Held, Meta, Store};
use crate::transfer::{Arrived, Kind, Parcel, Passage, Relaying, RequestId, Way};
use crate::wire::{self, RunId};
use crate::worker::Lock;

/// What one member's incoming files may go on to.
pub(in crate::hub) struct MemberRelaying {
    pub(in crate::hub) hub: Weak<Hub>,
    pub(in crate::hub) run: RunId,
    pub(in crate::hub) mailbox: Arc<Mailbox>,
}

impl Relaying for MemberRelaying {
    fn offered(&self, relay: &wire::Relay, item: u32, kind: Kind, meta: &Meta) -> Result<Way, Refusal> {
        let hub = self.hub.upgrade().ok_or(Refusal::Stopping)?;
        let key = (self.run, item);
        let spool = hub.relay.spool()?;
        let mut deeds = Vec::new();
        let known = {
            let state = &mut *hub.relay.state.take();
            match state.items.get_mut(&key) {
                Some(known) if known.kind == kind && is_same(&known.meta, meta) => {
                    known.origin = Arc::clone(&self.mailbox);
                    Some(Way::Known(known.arrived.clone(), known.relayed(item)))
                }
                // The source changed.
                Some(_) => {
                    state.remove(&key, &mut deeds);
                    None
                }
                None => None,
            }
        };
        hub.relay.run(deeds);
        if let Some(known) = known {
            return Ok(known);
        }
        let nicknames = hub.relay.recipients(&hub, self.run, relay)?;
        {
            let mut state = hub.relay.state.take();
            if state.awaited + nicknames.len() > RELAYED_MAX {
                return Err(Refusal::TooMuch);
            }
            state.awaited += nicknames.len();
        }
        let passage = RelayPassage {
            hub: Weak::clone(&self.hub),
            key,
            mailbox: Arc::clone(&self.mailbox),
            leaves: relay.leave,
            patience: Some(relay.patience_seconds).filter(|&seconds| seconds < u32::MAX),
            nicknames,
            meta: meta.clone(),
            kind,
            held: Arc::new(spool.hold(meta)),
        };
        Ok(Way::Through(Box::new(passage)))
    }

    fn asked_for(&self, request: RequestId, kind: Kind, meta: &Meta) -> Option<Result<Box<dyn Passage>, Refusal>> {
        let hub = self.hub.upgrade()?;
        if !hub.relay.state.take().fetches.contains_key(&request) {
            return None;
        }
        let spool = match hub.relay.spool() {
            Ok(spool) => spool,
            Err(refusal) => return Some(Err(refusal)),
        };
        let held = Arc::new(spool.hold(meta));
        let parcel = Parcel { kind, name: meta.path.clone(), mtime: meta.mtime, mode: meta.mode, held };
        Some(Ok(Box::new(FetchPassage { hub: Weak::clone(&self.hub), request, parcel })))
    }
}

/// A stream's size is not known before its end; its stamp tells it from others.
fn is_same(one: &Meta, other: &Meta) -> bool {
    (&one.path, one.size, one.mtime, one.content_crc) == (&other.path, other.size, other.mtime, other.content_crc)
}

/// A file on its way in, for others.
struct RelayPassage {
    hub: Weak<Hub>,
    key: Key,
    mailbox: Arc<Mailbox>,
    leaves: bool,
    /// In seconds; `None`: for ever.
    patience: Option<u32>,
    /// They count as awaited while they are here.
    nicknames: Vec<Nickname>,
    meta: Meta,
    kind: Kind,
    held: Arc<Held>,
}

impl Drop for RelayPassage {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            let mut state = hub.relay.state.take();
            state.awaited = state.awaited.saturating_sub(self.nicknames.len());
        }
    }
}

impl RelayPassage {
    fn parcel(&self) -> Parcel {
        Parcel {
            kind: self.kind,
            name: self.meta.path.clone(),
            mtime: self.meta.mtime,
            mode: self.meta.mode,
            held: Arc::clone(&self.held),
        }
    }

    fn leave(&self, hub: &Hub, arrived: &Arrived) -> Result<(), Refusal> {
        let spool = hub.relay.spool()?;
        let mut nicknames = self.nicknames.clone();
        {
            let state = hub.relay.state.take();
            nicknames.retain(|nickname| !state.has_left(&self.key, nickname));
        }
        let parted = |nickname: Nickname| {
            // Each note keeps the file for itself.
            let parcel = Parcel { held: Arc::new(self.held.again()), ..self.parcel() };
            let (run, number) = (self.key.0, self.key.1.into());
            let noted = note::of_file(self.key, &nickname, &self.meta, self.kind, arrived);
            let (what, noted_seconds) = (Parting::File(parcel), seconds_now());
            let left = Left { run, number, what, noted_seconds, has_started: false, is_refused: false };
            (nickname, left, noted)
        };
        let parted: Vec<_> = nicknames.into_iter().map(parted).collect();
        hub.relay.leave(&spool, parted)
    }
}

impl Passage for RelayPassage {
    fn name(&self) -> &SafePath {
        &self.meta.path
    }

    fn place(&self) -> (&Arc<Store>, &SafePath) {
        (self.held.store(), self.held.path())
    }

    fn arrived(&mut self, arrived: Arrived) -> Result<(), Refusal> {
        let hub = self.hub.upgrade().ok_or(Refusal::Stopping)?;
        self.held.is_stored_as(arrived.stored.clone());
        if self.leaves {
            return self.leave(&hub, &arrived);
        }
        let recipient = |nickname: Nickname| Recipient { nickname, via: None, until: None, outcome: None };
        let item = Item {
            meta: self.meta.clone(),
            kind: self.kind,
            arrived,
            origin: Arc::clone(&self.mailbox),
            patience: self.patience.map(|seconds| Duration::from_secs(seconds.into())),
            parcel: Some(self.parcel()),
            // They are the item's from now on.
            recipients: std::mem::take(&mut self.nicknames).into_iter().map(recipient).collect(),
        };
        let mut deeds = Vec::new();
        {
            let state = &mut *hub.relay.state.take();
            // It may have been offered twice.
            state.remove(&self.key, &mut deeds);
            state.items.insert(self.key, item);
        }
        hub.relay.run(deeds);
        Ok(())
    }

    fn go_on(self: Box<Self>) {
        let Some(hub) = self.hub.upgrade() else { return };
        if self.leaves {
            self.nicknames.iter().for_each(|nickname| hub.relay.go_on_with_left(&hub, nickname));
        } else {
            hub.relay.go_on(&hub, self.key);
        }
    }
}

/// A file on its way to who asked for it.
struct FetchPassage {
    hub: Weak<Hub>,
    request: RequestId,
    parcel: Parcel,
}

impl Passage for FetchPassage {
    fn name(&self) -> &SafePath {
        &self.parcel.name
    }

    fn place(&self) -> (&Arc<Store>, &SafePath) {
        (self.parcel.held.store(), self.parcel.held.path())
    }

    fn arrived(&mut self, arrived: Arrived) -> Result<(), Refusal> {
        self.parcel.held.is_stored_as(arrived.stored);
        Ok(())
    }

    fn go_on(self: Box<Self>) {
        let Some(hub) = self.hub.upgrade() else { return };
        let asker = {
            let state = hub.relay.state.take();
            state.fetches.get(&self.request).map(|it| (Arc::clone(&it.asker), it.epoch, it.number))
        };
        if let Some((asker, epoch, number)) = asker {
            asker.files.hand_on_asked(epoch, number, &self.parcel);
        }
    }
}
