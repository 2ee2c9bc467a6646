//! What the other side asks for: GET and LIST of the directory that is shared here (PROTOCOL 9).
//!
//! The directory is looked at on a thread of its own; what it gives goes out through [`Outbound`].

use std::sync::{Arc, Weak};

use super::outbound::Outbound;
use super::Listed;
use crate::error::{Error, Refusal, Result};
use crate::name::SafePath;
use crate::storage::Top;
use crate::worker::Worker;

/// See the module.
pub(crate) struct Sharing {
    top: Option<Arc<Top>>,
    files: Arc<Outbound>,
    worker: Worker<Job>,
}

/// A request, with the connection and the number that it came with.
struct Job {
    epoch: u32,
    number: u32,
    what: What,
}

enum What {
    Get(Vec<u8>),
    List(Vec<u8>),
}

impl Sharing {
    /// Shares `top`, or nothing.
    pub(crate) fn new(top: Option<Arc<Top>>, files: &Arc<Outbound>) -> Sharing {
        let (shared, sender) = (top.clone(), Arc::downgrade(files));
        let worker = Worker::new("share", 1, move |jobs: Vec<Job>| {
            jobs.into_iter().for_each(|job| answer(shared.as_ref(), &sender, job));
        });
        Sharing { top, files: Arc::clone(files), worker }
    }

    /// PROTOCOL 9.2.
    ///
    /// # Errors
    /// [`Error::Violation`], here and in the other.
    pub(crate) fn on_get(&self, number: u32, path: Vec<u8>) -> Result<()> {
        self.push(number, What::Get(path))
    }

    /// PROTOCOL 9.4.
    pub(crate) fn on_list(&self, number: u32, after: Vec<u8>) -> Result<()> {
        self.push(number, What::List(after))
    }

    fn push(&self, number: u32, what: What) -> Result<()> {
        let epoch = self.files.asked(number)?;
        if self.top.is_none() {
            self.files.refuse_request(epoch, number, Refusal::NoShare);
            return Ok(());
        }
        self.worker.push(Job { epoch, number, what }).map_err(Error::system("start a thread"))
    }
}

fn answer(top: Option<&Arc<Top>>, files: &Weak<Outbound>, Job { epoch, number, what }: Job) {
    let (Some(top), Some(files)) = (top, files.upgrade()) else { return };
    if !files.is_awaited(epoch) {
        return;
    }
    match what {
        What::Get(path) => {
            let path = SafePath::parse(&path).map_err(|_| Refusal::BadName);
            let found = path.and_then(|path| top.find(&path).ok_or(Refusal::NotFound));
            match found {
                Ok(found) => files.answer_get(epoch, number, found),
                Err(refusal) => files.refuse_request(epoch, number, refusal),
            }
        }
        What::List(after) => {
            let after = (!after.is_empty()).then(|| SafePath::parse(&after)).transpose();
            match after {
                Ok(after) => {
                    let page = top.list(after.as_ref());
                    let entries: Vec<Listed> = page.entries.into_iter().map(Listed::from).collect();
                    files.answer_list(epoch, number, &entries, page.more);
                }
                Err(_) => files.refuse_request(epoch, number, Refusal::BadName),
            }
        }
    }
}
