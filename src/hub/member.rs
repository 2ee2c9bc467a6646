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
}

impl Owner for MemberOwner {
    fn text(&self, text: wire::Text, handled: Handled) -> Result<(), (Refusal, Handled)> {
        self.hub.said(self, text, handled)
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
