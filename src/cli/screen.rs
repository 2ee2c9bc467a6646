//! Standard output and standard error, which may be one terminal whose last line is redrawn: the line that is being typed, or
//! how far the files are. Nothing else writes to either.
//!
//! Any thread may print; what is redrawn is taken away before, and put back after. Called by `print`.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::columns::{width, wrapped};
use super::editor::{Editor, Typed};
use super::terminal;

static SCREEN: Mutex<Screen> = Mutex::new(Screen { bar: None, drawn: None, editor: None, row: None });

/// To the start of the line, which is then empty.
const ERASE: &[u8] = b"\r\x1b[K";

struct Screen {
    /// The line of progress that is on the terminal, and when it was drawn last.
    bar: Option<String>,
    drawn: Option<Instant>,
    editor: Option<Editor>,
    /// What of the editor's row is on the terminal.
    row: Option<Row>,
}

struct Row {
    text: String,
    /// The cursor's column.
    cursor: usize,
    /// Which time it was that lines were edited.
    entered: usize,
}

/// A line for whoever reads standard output. It is flushed: when a text is acknowledged, they have it.
///
/// # Errors
/// It can't be written.
pub fn out(line: &str) -> io::Result<()> {
    let mut screen = lock();
    if terminal::is_stdout() {
        screen.clear();
    }
    write_stdout(format!("{line}\n").as_bytes())?;
    screen.draw_row();
    Ok(())
}

/// Lines for whoever runs the program; where nobody hears us there is nobody to tell. A terminal is never made to break a line
/// inside a word.
pub fn err(lines: &str) {
    if !terminal::is_stderr() {
        return write_stderr(format!("{lines}\n").as_bytes());
    }
    let columns = terminal::columns();
    let mut text = String::new();
    for line in lines.lines() {
        text.push_str(&wrapped(line, columns));
        text.push('\n');
    }
    let mut screen = lock();
    screen.clear();
    write_stderr(text.as_bytes());
    screen.draw_row();
}

/// Draws the line of progress, if it is time to and a terminal obeys.
pub fn draw(now: Instant, line: impl FnOnce(usize) -> String) {
    let mut screen = lock();
    if !terminal::is_stderr() || !terminal::obeys() || screen.editor.is_some() {
        return;
    }
    if screen.drawn.is_some_and(|drawn| now.duration_since(drawn) < terminal::redraw_after()) {
        return;
    }
    // The last column stays free: a terminal may go on to the next line after it.
    let line = line(terminal::columns().saturating_sub(1));
    let last = screen.bar.as_deref().unwrap_or_default();
    let spaces = width(last).saturating_sub(width(&line));
    if line != last {
        write_stderr(format!("\r{line}{:spaces$}", "").as_bytes());
    }
    (screen.bar, screen.drawn) = (Some(line), Some(now));
}

/// From now on lines are typed here.
pub fn begin_editing() {
    lock().editor = Some(Editor::default());
    resume_editing();
}

/// Once a shell gave the terminal back, the line is there again as it was.
pub fn resume_editing() {
    terminal::enter_editing();
    let mut screen = lock();
    if screen.row.as_ref().map(|row| row.entered) != terminal::editing() {
        screen.draw_row();
    }
}

/// Takes in what was typed, and shows it, but for whole lines: those are shown by [`entered`].
pub fn typed(bytes: &[u8]) -> Vec<Typed> {
    let mut screen = lock();
    let typed = screen.editor.as_mut().map_or(Vec::new(), |editor| editor.typed(bytes));
    if typed.is_empty() {
        screen.draw_row();
    }
    typed
}

/// A line that was typed stays on the terminal, before what it leads to.
pub fn entered(line: &str) {
    // A terminal that is gone is met by whoever reads it.
    let _ = out(&Editor::entered(line));
}

/// Nothing is redrawn any more.
pub fn finish() {
    let mut screen = lock();
    screen.clear();
    screen.editor = None;
}

impl Screen {
    /// Takes away what is redrawn, so that a line can be printed in its place.
    fn clear(&mut self) {
        if self.bar.take().is_some() {
            write_stderr(ERASE);
        }
        if self.row.take().is_some() {
            let _ = write_stdout(ERASE);
        }
    }

    /// Shows the line that is being typed as it is now. A character at the end of it costs no more than itself.
    fn draw_row(&mut self) {
        let (Some(editor), Some(entered)) = (&self.editor, terminal::editing()) else {
            self.row = None;
            return;
        };
        let (text, cursor) = editor.row(terminal::columns());
        let is_at_end = |text: &str, cursor| width(text) == cursor;
        let added = match &self.row {
            Some(last) if last.entered == entered && is_at_end(&last.text, last.cursor) && is_at_end(&text, cursor) => {
                text.strip_prefix(last.text.as_str())
            }
            _ => None,
        };
        let drawn = match added {
            Some(added) => added.to_owned(),
            None => format!("\r{text}\x1b[K\r\x1b[{cursor}C"),
        };
        let _ = write_stdout(drawn.as_bytes());
        self.row = Some(Row { text, cursor, entered });
    }
}

fn write_stdout(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush())
}

fn write_stderr(bytes: &[u8]) {
    let _ = io::stderr().lock().write_all(bytes);
}

fn lock() -> MutexGuard<'static, Screen> {
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}
