//! What was asked of the server and has no answer yet, with the name under which the user asked.

use std::collections::HashMap;

use postwire::{Event, RequestId};

use super::print::Printer;

#[derive(Default)]
pub struct Asked(HashMap<RequestId, String>);

impl Asked {
    pub fn add(&mut self, request: RequestId, label: String) {
        self.0.insert(request, label);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// It is asked for again, under another number.
    pub fn forget(&mut self, request: RequestId) {
        self.0.remove(&request);
    }

    /// Says what there is to say about any event; an answer, with the name of what it answers, which is forgotten then.
    pub fn say(&mut self, event: &Event, printer: &mut Printer) {
        match event {
            Event::Got { request, left_out, failed } => printer.got(&self.take(*request), *left_out, *failed),
            Event::RequestFailed { request, error } => printer.request_failed(&self.take(*request), error),
            Event::Listed { request, .. } => {
                self.take(*request);
                printer.event(event);
            }
            event => printer.event(event),
        }
    }

    fn take(&mut self, request: RequestId) -> String {
        self.0.remove(&request).unwrap_or_default()
    }
}
