//! One peer of a server, as the others see it.

use std::sync::Arc;

use super::Hub;
use crate::error::Refusal;
use crate::event::PeerInfo;
use crate::name::Nickname;
use crate::session::{Handled, Owner, Session};
use crate::wire::{self, Presence};

/// A connected peer.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) info: PeerInfo,
    pub(super) session: Arc<Session>,
}

/// Takes what a member's session brings to the hub.
pub(super) struct MemberOwner {
    pub(super) hub: Arc<Hub>,
    pub(super) info: PeerInfo,
}

impl Owner for MemberOwner {
    fn text(&self, text: wire::Text, handled: Handled) -> Result<(), (Refusal, Handled)> {
        self.hub.said(&self.info, text, handled)
    }

    // Clients announce nobody and name nobody (PROTOCOL 3); what they send of it is passed over.
    fn presence(&self, _: Presence) {}

    fn named(&self, _: Nickname) {}
}
