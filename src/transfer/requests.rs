//! What this side asks the other for: GET and LIST (PROTOCOL 9), over as many connections as it takes.
//!
//! A request is said again on each new connection until it has its answer. What a GET brings comes as offers, through
//! [`Inbound`](super::Inbound), which asks here whether they were asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::{Kind, TransferIds};
use crate::config::{LIST_BYTES_MAX, LIST_ENTRIES_MAX, PATH_BYTES_MAX, REQUESTS_MAX};
use crate::error::{Error, Refusal, Result};
use crate::name::{Nickname, SafePath};
use crate::storage;
use crate::wire::{self, Message};
use crate::worker::Lock;

/// Names a request to the application: unique for the life of the server or client.
pub type RequestId = u32;

/// A file or directory that the other side shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its path below what is shared.
    pub path: SafePath,
    /// [`Kind::File`] or [`Kind::Directory`].
    pub kind: Kind,
    /// A file's size.
    pub size_bytes: u64,
    /// When it was last changed, in seconds since 1970.
    pub mtime_seconds: i64,
}

impl From<storage::Listed> for Listed {
    fn from(listed: storage::Listed) -> Listed {
        let storage::Listed { path, is_directory, size, mtime } = listed;
        let kind = if is_directory { Kind::Directory } else { Kind::File };
        Listed { path, kind, size_bytes: size, mtime_seconds: mtime.seconds }
    }
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    Listed { request: RequestId, entries: Vec<Listed>, more: bool },
    Got { request: RequestId, left_out: u32, failed: u32 },
    Failed { request: RequestId, error: Error },
}

/// See the module.
pub(crate) struct Requests {
    state: Mutex<State>,
    ids: Arc<TransferIds>,
    report: Box<dyn Fn(Answer) + Send + Sync>,
}

#[derive(Default)]
struct State {
    open: BTreeMap<RequestId, Request>,
    is_connected: bool,
    /// Counts on each connection (PROTOCOL 9.1).
    last_number: u32,
}

struct Request {
    what: What,
    /// Once it was said on this connection.
    number: Option<u32>,
    /// Nobody wants the answer, which may be on its way.
    is_given_up: bool,
    entries: Vec<Listed>,
    entries_bytes: usize,
}

enum What {
    /// `from`: who has it, where that is not the other side itself; `name`: what it is called here.
    Get {
        from: Option<Nickname>,
        path: SafePath,
        name: SafePath,
    },
    List {
        from: Option<Nickname>,
        after: Option<SafePath>,
    },
}

impl Requests {
    pub(crate) fn new(ids: Arc<TransferIds>, report: impl Fn(Answer) + Send + Sync + 'static) -> Requests {
        Requests { state: Mutex::default(), ids, report: Box::new(report) }
    }

    /// Asks for a file or a directory, to be called `name` here.
    pub(crate) fn get(&self, from: Option<Nickname>, path: SafePath, name: SafePath) -> RequestId {
        self.add(What::Get { from, path, name })
    }

    /// Asks what there is, from what follows `after`.
    pub(crate) fn list(&self, from: Option<Nickname>, after: Option<SafePath>) -> RequestId {
        self.add(What::List { from, after })
    }

    fn add(&self, what: What) -> RequestId {
        let id = self.ids.next();
        let mut state = self.state.take();
        let (entries, entries_bytes) = (Vec::new(), 0);
        state.open.insert(id, Request { what, number: None, is_given_up: false, entries, entries_bytes });
        id
    }

    /// Nobody wants this any more, nor hears of it. What was said stays open until its answer comes, or the connection ends.
    pub(crate) fn give_up(&self, id: RequestId) {
        let mut state = self.state.take();
        if let Some(request) = state.open.get_mut(&id) {
            request.is_given_up = true;
            if request.number.is_none() {
                state.open.remove(&id);
            }
        }
    }

    /// Whether somebody wants the answer.
    pub(super) fn is_wanted(&self, id: RequestId) -> bool {
        self.state.take().open.get(&id).is_some_and(|request| !request.is_given_up)
    }

    /// A connection stands: everything is asked again on it.
    pub(crate) fn attach(&self) {
        let mut state = self.state.take();
        state.is_connected = true;
        state.last_number = 0;
        state.open.retain(|_, request| !request.is_given_up);
        for request in state.open.values_mut() {
            request.number = None;
            request.entries.clear();
            request.entries_bytes = 0;
        }
    }

    /// It is gone.
    pub(crate) fn detach(&self) {
        self.state.take().is_connected = false;
    }

    /// Whether everything that is wanted has its answer.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.take().open.values().all(|request| request.is_given_up)
    }

    /// Whether [`Requests::control`] would add something.
    pub(crate) fn has_work(&self) -> bool {
        let state = self.state.take();
        state.is_connected && state.room() > 0 && state.open.values().any(|request| request.number.is_none())
    }

    /// Appends what is to be asked now.
    pub(crate) fn control(&self, out: &mut Vec<u8>) {
        let state = &mut *self.state.take();
        if !state.is_connected {
            return;
        }
        let room = state.room();
        for request in state.open.values_mut().filter(|request| request.number.is_none()).take(room) {
            state.last_number += 1;
            let number = state.last_number;
            request.number = Some(number);
            match &request.what {
                What::Get { from, path, .. } => {
                    Message::Get { request: number, from: from.clone(), path: path.to_bytes() }
                }
                What::List { from, after } => {
                    let after = after.as_ref().map(SafePath::to_bytes).unwrap_or_default();
                    Message::List { request: number, from: from.clone(), after }
                }
            }
            .encode(out);
        }
    }

    /// PROTOCOL 9.2: which request an offer answers, and what it is called here.
    ///
    /// # Errors
    /// [`Error::Violation`] when it was not asked for, here and in the others when there is no such request.
    pub(crate) fn name_here(&self, number: u32, path: &[u8]) -> Result<(RequestId, Vec<u8>)> {
        let mut state = self.state.take();
        let (id, request) = state.find(number)?;
        let What::Get { path: asked, name, .. } = &request.what else {
            return Err(Error::violation("9.2", "an OFFER for a LIST"));
        };
        let rest = path.strip_prefix(asked.file_name().as_bytes()).filter(|rest| matches!(rest, [] | [b'/', ..]));
        let Some(rest) = rest else {
            return Err(Error::violation("9.2", "an OFFER of something else than was asked for"));
        };
        Ok((id, [&name.to_bytes(), rest].concat()))
    }

    /// PROTOCOL 9.4.
    pub(crate) fn on_entry(&self, entry: wire::Entry) -> Result<()> {
        let mut state = self.state.take();
        let (_, request) = state.find(entry.request)?;
        let is_list = matches!(request.what, What::List { .. });
        request.entries_bytes += entry.path.len();
        let fits = request.entries.len() < LIST_ENTRIES_MAX && request.entries_bytes <= LIST_BYTES_MAX + PATH_BYTES_MAX;
        let kind = Kind::from_wire(entry.kind).filter(|kind| *kind != Kind::Stream);
        let (true, true, Some(kind), Ok(path)) = (is_list, fits, kind, SafePath::parse(&entry.path)) else {
            return Err(Error::violation("9.4", "an ENTRY that was not asked for, or too many"));
        };
        let (size_bytes, mtime_seconds) = (entry.size, entry.mtime.seconds);
        request.entries.push(Listed { path, kind, size_bytes, mtime_seconds });
        Ok(())
    }

    /// PROTOCOL 9.3 and 9.4.
    pub(crate) fn on_ended(&self, number: u32, more: bool, left_out: u32, failed: u32) -> Result<()> {
        let (request, ended) = self.remove(number)?;
        if ended.is_given_up {
            return Ok(());
        }
        (self.report)(match ended.what {
            What::Get { .. } => Answer::Got { request, left_out, failed },
            What::List { .. } => Answer::Listed { request, entries: ended.entries, more },
        });
        Ok(())
    }

    /// PROTOCOL 9.2 and 9.4.
    pub(crate) fn on_refused(&self, number: u32, refusal: Refusal) -> Result<()> {
        let (request, ended) = self.remove(number)?;
        if !ended.is_given_up {
            (self.report)(Answer::Failed { request, error: Error::Refused(refusal) });
        }
        Ok(())
    }

    /// Ends everything that is left.
    pub(crate) fn fail_all(&self, error: impl Fn() -> Error) {
        let open = std::mem::take(&mut self.state.take().open);
        let wanted = open.into_iter().filter(|(_, request)| !request.is_given_up);
        wanted.for_each(|(request, _)| (self.report)(Answer::Failed { request, error: error() }));
    }

    fn remove(&self, number: u32) -> Result<(RequestId, Request)> {
        let mut state = self.state.take();
        let (id, _) = state.find(number)?;
        state.open.remove(&id).map(|request| (id, request)).ok_or_else(unknown)
    }
}

impl State {
    fn find(&mut self, number: u32) -> Result<(RequestId, &mut Request)> {
        let found = self.open.iter_mut().find(|(_, request)| request.number == Some(number));
        found.map(|(&id, request)| (id, request)).ok_or_else(unknown)
    }

    /// How many may be asked now.
    fn room(&self) -> usize {
        REQUESTS_MAX.saturating_sub(self.open.values().filter(|request| request.number.is_some()).count())
    }
}

fn unknown() -> Error {
    Error::violation("9.1", "an answer to a request that is not open")
}

#[cfg(test)]
mod tests {
    use super::*;
    fn path(path: &str) -> SafePath {
        SafePath::parse(path.as_bytes()).unwrap()
    }

    fn requests() -> (Requests, Arc<Mutex<Vec<Answer>>>) {
        let answers: Arc<Mutex<Vec<Answer>>> = Arc::default();
        let heard = Arc::clone(&answers);
        let requests = Requests::new(Arc::default(), move |answer| heard.take().push(answer));
        requests.attach();
        (requests, answers)
    }

    #[test]
    fn only_what_was_asked_for_may_be_offered_and_it_gets_the_name_it_has_here() {
        let (requests, _) = requests();
        let id = requests.get(None, path("crash/core"), path("b7/core"));
        assert!(requests.name_here(1, b"core").is_err(), "not asked yet");
        requests.control(&mut Vec::new());
        assert_eq!(requests.name_here(1, b"core").unwrap(), (id, b"b7/core".to_vec()));
        assert_eq!(requests.name_here(1, b"core/x/y").unwrap().1, b"b7/core/x/y");
        for other in ["cor", "core2", "crash/core", ""] {
            assert!(requests.name_here(1, other.as_bytes()).is_err(), "{other}");
        }
        assert!(requests.name_here(2, b"core").is_err());
        requests.on_ended(1, false, 0, 0).unwrap();
        assert!(requests.name_here(1, b"core").is_err(), "it has ended");
        assert!(requests.is_empty());
    }

    #[test]
    fn a_request_without_an_answer_is_asked_again_on_the_next_connection() {
        let (requests, answers) = requests();
        let id = requests.list(None, None);
        let mut out = Vec::new();
        requests.control(&mut out);
        assert!(!out.is_empty() && !requests.has_work());
        requests.detach();
        assert!(!requests.has_work());
        requests.attach();
        assert!(requests.has_work());
        requests.control(&mut Vec::new());
        let mtime = wire::Time::default();
        let entry = |path: &str| wire::Entry { request: 1, kind: 0, size: 1, mtime, path: path.into() };
        requests.on_entry(entry("a")).unwrap();
        assert!(requests.on_entry(entry("..")).is_err());
        requests.on_ended(1, true, 0, 0).unwrap();
        let answers = answers.take();
        assert!(
            matches!(&answers[..], [Answer::Listed { request, entries, more: true }] if *request == id && entries.len() == 1)
        );
    }

    #[test]
    fn no_more_is_asked_at_a_time_than_may_be_and_no_more_entries_are_taken() {
        let (requests, _) = requests();
        (0..REQUESTS_MAX + 1).for_each(|_| assert!(requests.list(None, None) > 0));
        requests.control(&mut Vec::new());
        assert!(!requests.has_work());
        requests.on_refused(3, Refusal::NoShare).unwrap();
        assert!(requests.has_work());
        let entry = wire::Entry { request: 1, kind: 0, size: 1, mtime: wire::Time::default(), path: b"a".to_vec() };
        (0..LIST_ENTRIES_MAX).for_each(|_| requests.on_entry(entry.clone()).unwrap());
        assert!(requests.on_entry(entry).is_err());
    }
}
