//! One peer of a server, as the others see it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use super::Hub;
use crate::error::Refusal;
use crate::event::PeerInfo;
use crate::name::{Nickname, SafePath};
use crate::session::{Handled, Mailbox, Owner, RequestOf, Session};
use crate::wire::{self, Presence};
use crate::worker::Lock;

/// A connected peer.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) info: PeerInfo,
    pub(super) called: Called,
    pub(super) session: Arc<Session>,
}

/// The nickname that one run has at the moment, for those who speak of it later.
#[derive(Clone)]
pub(super) struct Called(Arc<Mutex<Nickname>>);

impl Called {
    pub(super) fn new(nickname: Nickname) -> Called {
        Called(Arc::new(Mutex::new(nickname)))
    }

    pub(super) fn get(&self) -> Nickname {
        self.0.take().clone()
    }

    pub(super) fn set(&self, nickname: Nickname) {
        *self.0.take() = nickname;
    }
}

/// Takes what a member's session brings to the hub.
pub(super) struct MemberOwner {
    pub(super) hub: Arc<Hub>,
    pub(super) id: u32,
    pub(super) in_room: bool,
    pub(super) address: SocketAddr,
    pub(super) called: Called,
    pub(super) mailbox: Arc<Mailbox>,
    /// Those who were given something since this session last rested.
    pub(super) woken_next: Mutex<Vec<Arc<Member>>>,
}

impl MemberOwner {
    /// They are woken once for all that comes together.
    pub(super) fn gave(&self, receivers: &[Arc<Member>]) {
        let mut woken_next = self.woken_next.take();
        let is_known = |receiver: &Arc<Member>| woken_next.iter().any(|known| Arc::ptr_eq(known, receiver));
        // The room is mostly the same as for the text before.
        let is_same =
            woken_next.len() == receivers.len() && woken_next.iter().zip(receivers).all(|(a, b)| Arc::ptr_eq(a, b));
        if !is_same {
            let new: Vec<_> = receivers.iter().filter(|receiver| !is_known(receiver)).cloned().collect();
            woken_next.extend(new);
        }
    }
}

impl Owner for MemberOwner {
    fn text(&self, text: wire::Text, handled: Handled) -> Result<(), (Refusal, Handled)> {
        self.hub.said(self, text, handled)
    }

    fn rest(&self) {
        let woken = std::mem::take(&mut *self.woken_next.take());
        woken.iter().for_each(|member| member.session.mailbox().wake());
    }

    // Clients announce nobody (PROTOCOL 3); what they send of it is passed over.
    fn presence(&self, _: Presence) {}

    fn get_from(&self, from: &Nickname, request: RequestOf, path: Option<SafePath>) -> Result<(), Refusal> {
        self.hub.relay.ask(&self.hub, &self.mailbox, from, request, path, false)
    }

    fn list_from(&self, from: &Nickname, request: RequestOf, after: Option<SafePath>) -> Result<(), Refusal> {
        self.hub.relay.ask(&self.hub, &self.mailbox, from, request, after, true)
    }

    fn named(&self, nickname: Nickname) {
        self.hub.rename(self.id, &nickname);
    }
}
