//! What a typed line means: a text, or a [`Command`] where it begins with a slash. A function of the line.

use std::path::PathBuf;

use postwire::{Nickname, SafePath};

use super::options::Side;

/// What whoever sits at the console wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Say this to everybody in the room.
    Say(String),
    /// Say this to one.
    Message {
        to: Nickname,
        text: String,
    },
    /// Send a file: to the server or to one (client), to everybody in the room or to one (server).
    Send {
        path: PathBuf,
        to: Option<Nickname>,
    },
    /// Fetch what the server shares (client), or one of the others.
    Get {
        path: SafePath,
        from: Option<Nickname>,
    },
    /// What does it share.
    List {
        from: Option<Nickname>,
    },
    /// Who is in the room, or connected to the server.
    Who,
    /// Be called this from now on (client).
    Nick(Nickname),
    /// End somebody's connection (server).
    Kick(Nickname),
    Help,
    Quit,
    /// An empty line.
    Nothing,
}

/// What `/help` says: a screen of 80 by 24 has it all.
pub fn help(side: Side) -> &'static str {
    match side {
        Side::Client => {
            "\
a line              says it to everybody in the room (//LINE says /LINE)
/msg NICK TEXT      says it to one
/send PATH [@NICK]  sends a file or directory to the server, or on to one
/list [@NICK]       what the server shares, or one of the others
/get NAME [@NICK]   fetches it, into --dir or here
/who                who is in the room
/nick NAME          asks for another nickname
/quit               ends, once all is delivered; so does ^D"
        }
        Side::Server => {
            "\
a line              says it to everybody in the room (//LINE says /LINE)
/msg NICK TEXT      says it to one
/send PATH [@NICK]  sends a file to everybody in the room, or to one
/list @NICK         what one of them shares
/get NAME @NICK     fetches it into --dir
/who                who is connected
/kick NICK          ends somebody's connection
/quit               stops the server, as ^C does"
        }
    }
}

/// Reads one line; an error is a line for the user.
pub fn parse(side: Side, line: &str) -> Result<Command, String> {
    if line.trim().is_empty() {
        return Ok(Command::Nothing);
    }
    let Some(command) = line.strip_prefix('/') else {
        return Ok(Command::Say(line.to_owned()));
    };
    if command.starts_with('/') {
        return Ok(Command::Say(command.to_owned()));
    }
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let alone = |command| if rest.trim().is_empty() { Ok(command) } else { Err(format!("/{name} takes nothing")) };
    match (name, side) {
        ("send", _) => send(rest),
        ("msg", _) => message(rest),
        ("get", _) => get(side, rest),
        ("list", _) => list(side, rest),
        ("who", _) => alone(Command::Who),
        ("nick", Side::Client) => nickname("/nick takes NAME: 1 to 32 of A-Z a-z 0-9 . _ -", rest).map(Command::Nick),
        ("kick", Side::Server) => nickname("/kick takes NICK", rest).map(Command::Kick),
        ("quit", _) => alone(Command::Quit),
        ("help", _) => alone(Command::Help),
        _ => Err(format!("no such command: /{} (see /help; //TEXT says /TEXT)", postwire::escape(name.as_bytes()))),
    }
}

fn send(rest: &str) -> Result<Command, String> {
    let usage = || "/send takes PATH or PATH @NICK; put a PATH with spaces between \"quotes\"".to_owned();
    let (path, rest) = quoted_word(rest).ok_or_else(usage)?;
    let to = at_nickname(rest).ok_or_else(usage)?;
    Ok(Command::Send { path: path.into(), to })
}

fn get(side: Side, rest: &str) -> Result<Command, String> {
    let usage = || {
        let takes = if side == Side::Client { "NAME or NAME @NICK" } else { "NAME @NICK" };
        format!("/get takes {takes}, as /list shows it; put a NAME with spaces between \"quotes\"")
    };
    let (name, rest) = quoted_word(rest).ok_or_else(usage)?;
    let from = at_nickname(rest).filter(|from| side == Side::Client || from.is_some()).ok_or_else(usage)?;
    let path = SafePath::parse(name.trim_end_matches('/').as_bytes()).map_err(|_| usage())?;
    Ok(Command::Get { path, from })
}

fn list(side: Side, rest: &str) -> Result<Command, String> {
    let takes = if side == Side::Client { "nothing or @NICK" } else { "@NICK" };
    let from = at_nickname(rest).filter(|from| side == Side::Client || from.is_some());
    from.map(|from| Command::List { from }).ok_or_else(|| format!("/list takes {takes}"))
}

/// `@NICK` or nothing; `None` for anything else.
fn at_nickname(rest: &str) -> Option<Option<Nickname>> {
    match rest.trim() {
        "" => Some(None),
        word => Nickname::parse(word.strip_prefix('@')?.as_bytes()).ok().map(Some),
    }
}

fn nickname(usage: &str, rest: &str) -> Result<Nickname, String> {
    Nickname::parse(rest.trim().as_bytes()).map_err(|_| usage.to_owned())
}

fn message(rest: &str) -> Result<Command, String> {
    let usage = || "/msg takes NICK TEXT".to_owned();
    let (nickname, text) = rest.trim_start().split_once(char::is_whitespace).ok_or_else(usage)?;
    let to = Nickname::parse(nickname.as_bytes()).map_err(|_| usage())?;
    if text.trim().is_empty() {
        return Err(usage());
    }
    Ok(Command::Message { to, text: text.to_owned() })
}

/// The first word, as a shell would read it: `"…"` and `\` take away the meaning of spaces. And what follows it.
fn quoted_word(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let mut word = String::new();
    let mut in_quotes = false;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => in_quotes = !in_quotes,
            '\\' => word.push(chars.next()?.1),
            _ if c.is_whitespace() && !in_quotes => return Some((word, text.split_at(at).1)),
            _ => word.push(c),
        }
    }
    (!in_quotes && !word.is_empty()).then_some((word, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nickname(text: &str) -> Nickname {
        Nickname::parse(text.as_bytes()).unwrap()
    }

    fn send(path: &str, to: Option<&str>) -> Result<Command, String> {
        Ok(Command::Send { path: path.into(), to: to.map(nickname) })
    }

    #[test]
    fn a_line_is_a_text_unless_it_begins_with_one_slash() {
        let say = |text: &str| Ok(Command::Say(text.into()));
        assert_eq!(parse(Side::Server, " hello /who "), say(" hello /who "));
        assert_eq!(parse(Side::Client, "//quit"), say("/quit"));
        assert_eq!(parse(Side::Client, "  "), Ok(Command::Nothing));
    }

    #[test]
    fn a_path_may_be_quoted() {
        assert_eq!(parse(Side::Client, "/send a.bin"), send("a.bin", None));
        assert_eq!(parse(Side::Client, "/send  \"my file\" "), send("my file", None));
        assert_eq!(parse(Side::Client, "/send my\\ \\\"file"), send("my \"file", None));
        assert_eq!(parse(Side::Server, "/send \"my file\" @b7"), send("my file", Some("b7")));
        for line in ["/send", "/send ", "/send my file", "/send \"a", "/send a\\", "/send \"\""] {
            assert!(parse(Side::Client, line).is_err(), "{line}");
        }
        assert!(parse(Side::Server, "/send a b7").is_err());
        assert_eq!(parse(Side::Client, "/send a @b7"), send("a", Some("b7")));
    }

    #[test]
    fn a_message_keeps_its_text() {
        let expected = Command::Message { to: nickname("b7"), text: " two  spaces".into() };
        assert_eq!(parse(Side::Client, "/msg b7  two  spaces"), Ok(expected));
        for line in ["/msg", "/msg b7", "/msg b7 ", "/msg b:7 x"] {
            assert!(parse(Side::Server, line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_help_fits_a_console_of_80_by_24() {
        for text in [help(Side::Client), help(Side::Server)] {
            assert!(text.lines().count() <= 20 && text.lines().all(|line| line.len() < 80), "{text}");
        }
    }

    #[test]
    fn commands_are_known_or_refused() {
        assert_eq!(parse(Side::Server, "/who"), Ok(Command::Who));
        assert_eq!(parse(Side::Client, "/nick b7"), Ok(Command::Nick(nickname("b7"))));
        assert_eq!(parse(Side::Server, "/kick b7"), Ok(Command::Kick(nickname("b7"))));
        for (side, line) in [(Side::Server, "/nick b7"), (Side::Client, "/kick b7"), (Side::Client, "/nick a b")] {
            assert!(parse(side, line).is_err(), "{line}");
        }
        assert_eq!(parse(Side::Client, "/quit"), Ok(Command::Quit));
        assert_eq!(parse(Side::Client, "/list"), Ok(Command::List { from: None }));
        let b7 = Some(nickname("b7"));
        assert_eq!(parse(Side::Server, "/list @b7"), Ok(Command::List { from: b7.clone() }));
        let core = SafePath::parse(b"crash/my core").unwrap();
        let get = |from| Ok(Command::Get { path: core.clone(), from });
        assert_eq!(parse(Side::Client, "/get \"crash/my core/\""), get(None));
        assert_eq!(parse(Side::Server, "/get \"crash/my core/\" @b7"), get(b7));
        for line in ["/get a", "/list", "/list b7", "/get a b7"] {
            assert!(parse(Side::Server, line).is_err(), "{line}");
        }
        for line in ["/get", "/get a b", "/get ../a", "/get /a", "/list x"] {
            assert!(parse(Side::Client, line).is_err(), "{line}");
        }
        assert_eq!(parse(Side::Client, "/help"), Ok(Command::Help));
        assert!(parse(Side::Client, "/quit now").is_err());
        assert!(parse(Side::Client, "/etc/passwd is a file").unwrap_err().contains("//TEXT"));
    }
}
