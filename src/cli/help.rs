//! The texts of `--help`, made from the table of options and the table of exit codes.

use super::exit;
use super::options::{Row, Side};

/// A console of 80 columns shows every line of the help as one.
const COLUMNS: usize = 79;

/// `postwire --version`.
pub const VERSION: &str = concat!("postwire ", env!("CARGO_PKG_VERSION"));

const WHOLE: &str = "\
postwire carries texts and files between machines, both ways, over one TCP
connection.

Usage: postwire server [OPTION]...
       postwire client --to HOST[:PORT] [OPTION]... [PATH]...
       postwire keygen FILE

  postwire server --dir inbox                   here
  postwire client --to host --file dump.bin     there; exit 0: it is stored

keygen makes a key for --key-file in FILE (- is standard output): with the same
key on both sides connections are sealed, and nobody else gets in.
Under the name client or server (a link) it is that subcommand.
See postwire server --help and postwire client --help.
";

const CLIENT: &str = "\
Sends files, directories and texts to a server, fetches what it shares, or
talks in its room.

Usage: postwire client --to HOST[:PORT] [OPTION]... [PATH]...

What it is to send and fetch it does in order, and ends. With nothing to do it
joins the server's room: each line of standard input is a text, what others say
is printed as NICK: TEXT, and the end of input ends it. On a terminal a line
that begins with / is a command, see /help.

Examples:
  postwire client --to board:7117 --file dump.bin
  postwire client --to board *.log --text \"logs are there\"
  tar c . | postwire client --to board --file - --as all.tar
  postwire client --to board --get crash/core
  make 2>&1 | postwire client --to board --nick build
  postwire client --to board --stay --dir inbox
";

const SERVER: &str = "\
Takes files, and carries texts between the clients in its room, until it is
told to stop.

Usage: postwire server [OPTION]...

Texts are printed as NICK: TEXT. Each line of standard input is a text to
everybody in the room; a line that begins with / is a command, see /help. The
end of input does not end the server; /quit, ^C or SIGTERM does.

Examples:
  postwire server --dir inbox
  postwire server --listen 127.0.0.1:0 --port-file port </dev/null
";

const UNITS: &str = "\
SIZE is in bytes, or with k, M, G, T (1024). TIME is in seconds, or with ms, s,
m, h, d.
";

const EXEC: &str = "\
PROGRAM finds RECEIVED_TYPE (file or text), RECEIVED_NAME, RECEIVED_PATH,
RECEIVED_BYTES, RECEIVED_CRC32, RECEIVED_NICK and RECEIVED_ADDRESS in its
environment, and a text on its standard input.
";

/// The help of one subcommand, or of the whole.
pub fn text(side: Option<Side>) -> String {
    let (side, mut text, variables) = match side {
        None => return WHOLE.to_owned(),
        Some(Side::Client) => (
            Side::Client,
            CLIENT.to_owned(),
            "POSTWIRE_TO, POSTWIRE_NICK, POSTWIRE_KEY_FILE: as --to, --nick, --key-file. POSTWIRE_KEY: the key itself.",
        ),
        Some(Side::Server) => (
            Side::Server,
            SERVER.to_owned(),
            "POSTWIRE_NICK, POSTWIRE_KEY_FILE: as --nick, --key-file. POSTWIRE_KEY: the key itself.",
        ),
    };
    text.push_str("\nOptions:\n");
    side.rows().for_each(|row| push_line(&mut text, &option(row), 26, row.help));
    text.push('\n');
    text.push_str(UNITS);
    text.push_str(EXEC);
    push_line(&mut text, "Environment:", 0, variables);
    text.push_str("\nExit codes:\n");
    exit::TABLE.iter().for_each(|(exit, means)| push_line(&mut text, &format!("{:>5}", exit.code()), 5, means));
    push_line(&mut text, "128+N", 5, "ended by signal N");
    text
}

fn option(row: &Row) -> String {
    let short = if row.short.is_empty() { "    ".to_owned() } else { format!("-{}, ", row.short) };
    let value = if row.value.is_empty() { String::new() } else { format!(" {}", row.value) };
    format!("{short}--{}{value}", row.long)
}

/// Two columns, the right one in as many lines as it takes; no width is no columns.
fn push_line(text: &mut String, left: &str, width: usize, right: &str) {
    let indent = if width == 0 { "" } else { "  " };
    let mut line = format!("{indent}{left:<width$}");
    let indent = line.len();
    for word in right.split(' ') {
        if line.len() + 1 + word.len() > COLUMNS && line.len() > indent {
            text.push_str(&line);
            text.push('\n');
            line = " ".repeat(indent);
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::TABLE;

    #[test]
    fn every_option_is_in_the_help_of_its_side_and_in_no_other() {
        for row in TABLE {
            for side in [Side::Client, Side::Server] {
                let left = format!("  {} ", option(row));
                let shown = text(Some(side)).lines().any(|line| line.starts_with(&left));
                assert_eq!(shown, row.sides.contains(&side), "{}", row.long);
            }
        }
    }

    #[test]
    fn the_help_fits_a_console() {
        for side in [None, Some(Side::Client), Some(Side::Server)] {
            let text = text(side);
            assert!(text.lines().all(|line| line.len() <= COLUMNS), "{text}");
        }
    }
}
