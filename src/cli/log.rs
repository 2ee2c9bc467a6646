//! The lines of `-v` and `-vv`: `TIME LEVEL TYPE key=value ...`, with the keys of `--json`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::args::Level;
use super::human;
use super::json::{quoted, Object};

/// What an object tells.
pub fn object(level: Level, object: &Object) -> String {
    format!("{} {} {}", now(), name(level), object.log())
}

/// What has no object.
pub fn message(level: Level, message: &str) -> String {
    format!("{} {} msg={}", now(), name(level), quoted(message))
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Notice => "info",
        Level::Detail => "debug",
        Level::Trace => "trace",
    }
}

fn now() -> String {
    stamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn stamp(since_1970: Duration) -> String {
    let seconds = i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX);
    format!("{}.{:03}Z", human::utc(seconds).replace(' ', "T"), since_1970.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_time_a_level_a_type_and_pairs() {
        assert_eq!(stamp(Duration::from_millis(951_782_399_007)), "2000-02-28T23:59:59.007Z");
        let told =
            Object::new("receipt").text("name", "a b").text("stored", "a").number("bytes", 7).nullable("peer", None);
        assert_eq!(told.log(), "receipt name=\"a b\" stored=a bytes=7 peer=null");
        let line = object(Level::Notice, &told.text("odd", "a=\n\x1b"));
        assert!(
            line.ends_with("Z info receipt name=\"a b\" stored=a bytes=7 peer=null odd=\"a=\\n\\u001b\""),
            "{line}"
        );
        assert!(message(Level::Error, "it's\nhere").ends_with("Z error msg=\"it's\\nhere\""));
    }
}
