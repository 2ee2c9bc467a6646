//! What is under way between clients, and what comes next of it: [`State`] decides, and gives [`Deed`]s to whoever locked it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Deed, Fetch, Hub, Item, Key, Left, Leg, Parting, Recipient, State, Wanted};
use crate::config::{RELAYED_MAX, RETRY_BROKEN};
use crate::error::Refusal;
use crate::name::{Nickname, SafePath};
use crate::session::Mailbox;
use crate::transfer::RequestId;
use crate::wire::{self, Delivered, RunId};

impl Recipient {
    pub(super) fn is_awaited(&self) -> bool {
        self.outcome.is_none()
    }
}

impl Item {
    /// Its receiver is not here; `has_begun` when it was.
    pub(super) fn wait_for(&mut self, nickname: &Nickname, has_begun: bool) {
        let least = if has_begun { RETRY_BROKEN } else { Duration::ZERO };
        let patience = self.patience.map(|patience| patience.max(least));
        if let Some(recipient) = self.recipients.iter_mut().find(|it| it.nickname == *nickname) {
            recipient.via = None;
            recipient.until = patience.and_then(|patience| Instant::now().checked_add(patience));
        }
    }

    pub(super) fn relayed(&self, item: u32) -> Vec<wire::Relayed> {
        let is_over = !self.recipients.iter().any(Recipient::is_awaited);
        let mut told: Vec<wire::Relayed> = self
            .recipients
            .iter()
            .filter_map(|it| {
                let (nickname, outcome) = (it.nickname.clone(), it.outcome.clone()?);
                Some(wire::Relayed { item, nickname, outcome, last: false })
            })
            .collect();
        if let Some(last) = told.last_mut() {
            last.last = is_over;
        }
        told
    }
}

impl Deed {
    pub(super) fn receiver(&self) -> Option<Arc<Mailbox>> {
        match self {
            Deed::Send(mailbox, ..) => Some(Arc::clone(mailbox)),
            _ => None,
        }
    }
}

impl State {
    /// One of those that a file is for has it, or will not get it.
    pub(super) fn end(
        &mut self,
        key: &Key,
        nickname: &Nickname,
        outcome: Result<Delivered, Refusal>,
        deeds: &mut Vec<Deed>,
    ) {
        let Some(item) = self.items.get_mut(key) else { return };
        let Some(recipient) = item.recipients.iter_mut().find(|it| it.nickname == *nickname && it.is_awaited()) else {
            return;
        };
        recipient.outcome = Some(outcome.clone());
        (recipient.via, recipient.until) = (None, None);
        self.awaited = self.awaited.saturating_sub(1);
        let last = !item.recipients.iter().any(Recipient::is_awaited);
        if last {
            deeds.push(Deed::Drop(item.parcel.take()));
            self.over.push_back(*key);
        }
        // In the order in which they end, as the last one says that it is.
        item.origin.put_outcome(wire::Relayed { item: key.1, nickname: nickname.clone(), outcome, last });
        deeds.push(Deed::Wake(Arc::clone(&item.origin)));
        while self.over.len() > RELAYED_MAX {
            let Some(oldest) = self.over.pop_front() else { return };
            if self.items.get(&oldest).is_some_and(|item| item.parcel.is_none()) {
                self.items.remove(&oldest);
            }
        }
    }

    pub(super) fn remove(&mut self, key: &Key, deeds: &mut Vec<Deed>) {
        let Some(item) = self.items.remove(key) else { return };
        self.awaited = self.awaited.saturating_sub(item.recipients.iter().filter(|it| it.is_awaited()).count());
        for (id, via) in item.recipients.into_iter().filter_map(|recipient| recipient.via) {
            self.legs.remove(&id);
            deeds.push(Deed::Withdraw(via, id));
        }
        deeds.push(Deed::Drop(item.parcel));
    }

    pub(super) fn ask(&mut self, fetch: Fetch) {
        let requests = &fetch.via.requests;
        let id = match &fetch.what {
            Wanted::File(path) => requests.get(None, path.clone(), SafePath::from(path.file_name().clone())),
            Wanted::List(after) => requests.list(None, after.clone()),
        };
        self.fetches.insert(id, fetch);
    }

    /// Those who asked want it no more.
    pub(super) fn give_up(&mut self, is_it: impl Fn(&Fetch) -> bool) -> Vec<Fetch> {
        let ids: Vec<RequestId> = self.fetches.iter().filter(|(_, fetch)| is_it(fetch)).map(|(&id, _)| id).collect();
        let given_up = ids.into_iter().filter_map(|id| {
            let fetch = self.fetches.remove(&id)?;
            fetch.via.requests.give_up(id);
            Some(fetch)
        });
        given_up.collect()
    }

    /// Who was asked is here on another run, which knows nothing of it.
    pub(super) fn ask_again(&mut self, nickname: &Nickname, mailbox: &Arc<Mailbox>) {
        let is_its = |fetch: &Fetch| fetch.from == *nickname;
        let ids: Vec<RequestId> = self.fetches.iter().filter(|(_, it)| is_its(it)).map(|(&id, _)| id).collect();
        for id in ids {
            let Some(mut fetch) = self.fetches.remove(&id) else { continue };
            fetch.until = None;
            if Arc::ptr_eq(&fetch.via, mailbox) {
                self.fetches.insert(id, fetch);
            } else {
                fetch.via.requests.give_up(id);
                fetch.via = Arc::clone(mailbox);
                self.ask(fetch);
            }
        }
    }

    /// Something that was left has come, or has not.
    pub(super) fn end_left(
        &mut self,
        nickname: &Nickname,
        note: u64,
        is_done: bool,
        is_gone: bool,
        deeds: &mut Vec<Deed>,
    ) {
        let Some(queue) = self.left.get_mut(nickname) else { return };
        if is_gone {
            queue.via = None;
        }
        if is_done {
            deeds.extend(queue.notes.remove(&note).map(|left| Deed::Forget(note, left)));
            if queue.notes.is_empty() {
                self.left.remove(nickname);
            }
        } else if let Some(left) = queue.notes.get_mut(&note) {
            left.has_started = false;
            left.is_refused = !is_gone;
        }
    }

    /// What was left and is not on its way is kept for a while only.
    pub(super) fn forget_old(&mut self, keep_from: i64, deeds: &mut Vec<Deed>) {
        self.left.retain(|_, queue| {
            let is_old = |left: &Left| left.noted_seconds < keep_from && !left.has_started;
            let old: Vec<u64> = queue.notes.iter().filter(|(_, left)| is_old(left)).map(|(&note, _)| note).collect();
            deeds.extend(old.into_iter().filter_map(|note| Some(Deed::Forget(note, queue.notes.remove(&note)?))));
            !queue.notes.is_empty()
        });
    }

    /// A text that was left had no room.
    pub(super) fn unsay(&mut self, sequence: u64) {
        let Some((nickname, note)) = self.said.remove(&sequence) else { return };
        let left = self.left.get_mut(&nickname).and_then(|queue| queue.notes.get_mut(&note));
        left.into_iter().for_each(|left| left.has_started = false);
    }

    /// Sends what was left, in the order in which each run left it: files together, a text once all before it came, and nothing
    /// past what was refused.
    pub(super) fn deliver_left(&mut self, hub: &Hub, nickname: &Nickname, deeds: &mut Vec<Deed>) {
        let Some(queue) = self.left.get_mut(nickname) else { return };
        let Some(mailbox) = queue.via.clone() else { return };
        let (mut held_up, mut have_files) = (BTreeSet::new(), BTreeSet::new());
        for (&note, left) in &mut queue.notes {
            if held_up.contains(&left.run) {
                continue;
            }
            match &left.what {
                _ if left.is_refused => {
                    held_up.insert(left.run);
                }
                Parting::File(parcel) => {
                    have_files.insert(left.run);
                    if !std::mem::replace(&mut left.has_started, true) {
                        let id = hub.ids.next();
                        self.legs.insert(id, Leg::Left(nickname.clone(), note));
                        deeds.push(Deed::Send(Arc::clone(&mailbox), id, parcel.clone()));
                    }
                }
                Parting::Text(text) => {
                    held_up.insert(left.run);
                    if !have_files.contains(&left.run) && !std::mem::replace(&mut left.has_started, true) {
                        let sequence = hub.next_sequence();
                        self.said.insert(sequence, (nickname.clone(), note));
                        // PROTOCOL 11.5: what its run says meanwhile comes before it, and must not hide it.
                        let run = RunId(text.run.0.map(|byte| !byte));
                        let text = wire::Text { run, leave: false, ..text.clone() };
                        deeds.push(Deed::Say(Arc::clone(&mailbox), text, sequence));
                    }
                }
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let items = self.items.values().flat_map(|item| item.recipients.iter().filter_map(|it| it.until));
        items.chain(self.fetches.values().filter_map(|fetch| fetch.until)).min()
    }

    pub(super) fn give_up_overdue(&mut self, deeds: &mut Vec<Deed>) {
        let now = Instant::now();
        let is_overdue = |until: Option<Instant>| until.is_some_and(|until| until <= now);
        let mut overdue = Vec::new();
        for (key, item) in &mut self.items {
            for recipient in item.recipients.iter_mut().filter(|it| is_overdue(it.until)) {
                overdue.push((*key, recipient.nickname.clone()));
                if let Some((id, via)) = recipient.via.take() {
                    self.legs.remove(&id);
                    deeds.push(Deed::Withdraw(via, id));
                }
            }
        }
        overdue.iter().for_each(|(key, nickname)| self.end(key, nickname, Err(Refusal::Nobody), deeds));
        deeds.extend(self.give_up(|fetch| is_overdue(fetch.until)).into_iter().map(Deed::Refuse));
    }

    pub(super) fn has_left(&self, key: &Key, nickname: &Nickname) -> bool {
        let is_it =
            |left: &Left| left.run == key.0 && left.number == u64::from(key.1) && matches!(left.what, Parting::File(_));
        self.left.get(nickname).is_some_and(|queue| queue.notes.values().any(is_it))
    }
}
