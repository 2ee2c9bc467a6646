//! What is known of the terminal, and its mode, which every end of the process gives back.
//!
//! Nothing is kept: a window changes its size, and a line its speed. It refuses to draw on what it does not know.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::getpgrp;
use rustix::termios::{
    tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr, LocalModes, OptionalActions, SpecialCodeIndex, Termios,
};

/// What a terminal has that tells nothing, a serial console mostly.
const COLUMNS: usize = 80;
/// A line of this speed is filled by one redraw a second.
const SLOW_BAUD: u32 = 9600;

/// The mode to give back, while a line is edited in another.
static MODE: Mutex<Option<Termios>> = Mutex::new(None);
/// How often a line began to be edited: what was drawn before is elsewhere now.
static ENTERED: AtomicUsize = AtomicUsize::new(0);

/// The columns of the terminal that standard error is.
pub fn columns() -> usize {
    let columns = tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
    if columns == 0 {
        COLUMNS
    } else {
        columns
    }
}

/// Whether the terminal that is `TERM` obeys the few sequences that a line is redrawn and edited with.
pub fn obeys() -> bool {
    env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// The pause between two redraws.
pub fn redraw_after() -> Duration {
    let is_slow = tcgetattr(io::stderr()).is_ok_and(|mode| (1..=SLOW_BAUD).contains(&mode.output_speed()));
    Duration::from_millis(if is_slow { 1000 } else { 200 })
}

/// Whether lines can be edited here: both directions are one terminal that obeys.
pub fn is_for_editing() -> bool {
    io::stdin().is_terminal() && is_stdout() && obeys()
}

/// Whether standard input is our terminal and another job's turn. What is no terminal of ours stops nobody.
pub fn is_in_background() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground != getpgrp())
}

/// Lets each key come as it is typed, without showing it. Signals stay with the system.
pub fn enter_editing() {
    let mut held = lock();
    if held.is_some() || is_in_background() {
        return;
    }
    let Ok(mode) = tcgetattr(io::stdin()) else { return };
    let mut editing = mode.clone();
    editing.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
    editing.special_codes[SpecialCodeIndex::VMIN] = 1;
    editing.special_codes[SpecialCodeIndex::VTIME] = 0;
    if tcsetattr(io::stdin(), OptionalActions::Now, &editing).is_ok() {
        *held = Some(mode);
        ENTERED.fetch_add(1, Ordering::SeqCst);
    }
}

/// Gives the mode back and takes the line that was being edited away.
pub fn leave_editing() {
    give_back(&mut lock());
}

/// Stops the process by `stop`, with the terminal as it was. Nobody edits a line before it goes on; perhaps that is in the
/// background, and then whoever reads begins again later.
pub fn stop(stop: impl FnOnce()) {
    let mut held = lock();
    let is_editing = held.is_some();
    give_back(&mut held);
    stop();
    drop(held);
    if is_editing {
        enter_editing();
    }
}

fn give_back(held: &mut Option<Termios>) {
    let Some(mode) = held.take() else { return };
    // To change the mode in the background would stop the program.
    if !is_in_background() {
        let _ = io::stdout().write_all(b"\r\x1b[K").and_then(|()| io::stdout().flush());
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &mode);
    }
}

/// Whether a line is being edited and may be drawn: which time it is that lines are.
pub fn editing() -> Option<usize> {
    lock().as_ref().map(|_| ENTERED.load(Ordering::SeqCst))
}

/// Whether standard output is a terminal.
pub fn is_stdout() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    *IS.get_or_init(|| io::stdout().is_terminal())
}

/// Whether standard error is one.
pub fn is_stderr() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    *IS.get_or_init(|| io::stderr().is_terminal())
}

fn lock() -> MutexGuard<'static, Option<Termios>> {
    MODE.lock().unwrap_or_else(PoisonError::into_inner)
}
