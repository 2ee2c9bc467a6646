//! The command line: what its words mean, the four runs, what is printed, and how it ends. It uses the library's public API
//! only. Printing, the environment and exit codes are nowhere else.
//!
//! A run is one loop over one [`feed::Feed`]; its decisions are functions beside it that are tested without a connection.

mod advice;
mod args;
mod asked;
mod chat;
mod columns;
mod console;
mod editor;
mod exec;
mod exit;
mod feed;
mod help;
mod human;
mod input;
mod job;
mod json;
mod keys;
mod log;
mod options;
mod print;
mod progress;
mod screen;
mod serve;
mod signals;
mod stay;
mod terminal;
mod units;

use std::env;
use std::ffi::OsString;
use std::path::Path;

use postwire::{Client, Config, Error, Key, Result};
use rustix::fs::{access, Access};

use args::{ClientOrder, ClientRun, Environment, Order, Output};
use exec::Exec;
use exit::Exit;
use feed::Feed;
use keys::{KeySource, NoKey};
use options::{Side, Usage};
use print::{Printer, Run};

const NOT_LISTENING: &str =
    "--listen - takes a listening TCP socket as standard input (systemd: StandardInput=socket, inetd: wait)";

const NO_ENCRYPTION: &str =
    "this build can't encrypt, so a key means nothing to it: take one that was built with --features full";

/// Does what the command line says, and ends the process.
pub fn main() -> ! {
    let mut arguments = env::args_os();
    let program = arguments.next().unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    let environment = Environment {
        to: env::var_os("POSTWIRE_TO"),
        nick: env::var_os("POSTWIRE_NICK"),
        key_file: env::var_os("POSTWIRE_KEY_FILE"),
        key: env::var_os("POSTWIRE_KEY"),
    };
    let order = args::read(&program, &arguments, &environment)
        .unwrap_or_else(|usage| print::end_with(Output::PLAIN, usage, Exit::Usage));
    let output = order.output();
    if let Err(usage) = order.exec().map_or(Ok(()), |(side, program)| exec::check(side, program)) {
        print::end_with(output, usage, Exit::Usage);
    }
    let (side, done) = match order {
        Order::Help(side) => help_and_end(&help::text(side)),
        Order::Version => help_and_end(help::VERSION),
        Order::Keygen(path) => match keys::make(&path) {
            Ok(text) => help_and_end(&text),
            Err(error) => print::end_with(output, error, Exit::File),
        },
        Order::Client(mut order) => {
            order.config.key = key(Side::Client, order.key.as_ref(), output);
            (Side::Client, client(order))
        }
        Order::Server(mut order) => {
            order.config.key = key(Side::Server, order.key.as_ref(), output);
            (Side::Server, serve::run(order))
        }
    };
    match done {
        Ok(exit) => exit.end(),
        Err(error) => print::end_with(output, explain(side, &error), Exit::of(&error)),
    }
}

fn help_and_end(text: &str) -> ! {
    print::print_help(text);
    Exit::Done.end()
}

/// The key that was named, before anything else is opened.
fn key(side: Side, source: Option<&KeySource>, output: Output) -> Option<Key> {
    match keys::load(side, source?) {
        Ok(key) => Some(key),
        Err(NoKey::Usage(usage)) => print::end_with(output, usage, Exit::Usage),
        Err(NoKey::Error(error)) => print::end_with(output, explain(side, &error), Exit::of(&error)),
    }
}

fn client(mut order: ClientOrder) -> Result<Exit> {
    let mut feed = Feed::new()?;
    let run = if order.config.join_room { Run::Room } else { Run::Job };
    let mut printer = with_exec(Printer::new(order.output, run), order.exec.as_deref(), &order.config, &feed)?;
    if order.output.to_stdout {
        order.config.sink = Some(print::stdout_sink()?);
    }
    let chats = matches!(order.run, ClientRun::Chat);
    if chats && order.config.dir.is_none() && access(".", Access::WRITE_OK | Access::EXEC_OK).is_ok() {
        // For /get; nothing comes here unasked.
        (order.config.dir, order.config.take_offers) = (Some(".".into()), false);
    }
    let client = Client::connect(&order.address, order.config)?;
    let events = client.clone();
    feed.add_events(move |timeout| events.next_event(timeout))?;
    let exit = match order.run {
        ClientRun::Job(items) => {
            let job = job::Job { items, recipients: order.recipients, from: order.from };
            job::run(&client, job, order.wait, &mut feed, &mut printer)
        }
        ClientRun::Chat => chat::run(&client, &mut feed, &mut printer)?,
        ClientRun::Stay { count } => stay::run(&client, count, &mut feed, &mut printer),
    };
    printer.finish();
    Ok(exit)
}

/// Lets a printer pass on what comes to the program of `--exec`, until a signal comes.
fn with_exec(printer: Printer, exec: Option<&Path>, config: &Config, feed: &Feed) -> Result<Printer> {
    let Some(program) = exec else { return Ok(printer) };
    let output = printer.output();
    let exec = Exec::start(program, config.dir.as_deref(), move |ended| print::exec_ended(output, ended))?;
    let stopping = exec.clone();
    feed.at_signal(move || stopping.stop());
    Ok(printer.with_exec(exec))
}

/// An address that can't mean anything is wrong usage of the option that gave it.
fn explain(side: Side, error: &Error) -> String {
    let long = match side {
        Side::Client => "to",
        Side::Server => "listen",
    };
    match error {
        Error::Argument { what: "address", got, .. } => Usage::value(side, long, got).to_string(),
        Error::Argument { what: "key", .. } => Usage::new(Some(side), NO_ENCRYPTION).to_string(),
        Error::Argument { what: "listener", .. } => Usage::new(Some(side), NOT_LISTENING).to_string(),
        error => advice::line(error),
    }
}
