//! Sizes and times as a user writes and reads them. Called by `args` and `progress`.

use std::time::Duration;

/// What any wait or age is at most: 100 years, so that adding it to a clock never overflows.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Bytes: `1234`, or with `k`, `M`, `G`, `T` in steps of 1024, in either case.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let factor: u64 = match unit {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// A time: `90` and `90s` are seconds, then `ms`, `m`, `h`, `d`.
pub fn time(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let factor_ms: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        "d" => 24 * 3600 * 1000,
        _ => return None,
    };
    let time = Duration::from_millis(number.checked_mul(factor_ms)?);
    (time <= LONGEST).then_some(time)
}

/// Bytes in the largest unit that leaves a number of 1 or more: `12 B`, `1.5 KiB`.
pub fn show_size(bytes: u64) -> String {
    let mut left = bytes;
    let mut unit = None;
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if left < 1024 {
            break;
        }
        // The tenth is that of the unit before.
        unit = Some((next, left % 1024 * 10 / 1024));
        left /= 1024;
    }
    match unit {
        None => format!("{bytes} B"),
        Some((unit, tenth)) => format!("{left}.{tenth} {unit}"),
    }
}

/// Seconds as minutes, `4:05`, or with hours, `1:04:05`.
pub fn show_time(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{rest:02}"),
        1..=99 => format!("{hours}:{minutes:02}:{rest:02}"),
        _ => format!("{} days", hours / 24),
    }
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_in_steps_of_1024() {
        let sizes = ["0", "1234", "512k", "20M", "4G", "1T", "1m"].map(size);
        let expected = [0, 1234, 512 << 10, 20 << 20, 4 << 30, 1 << 40, 1 << 20].map(Some);
        assert_eq!(sizes, expected);
    }

    #[test]
    fn times_are_seconds_unless_said_otherwise() {
        let times = ["0", "7", "7s", "500ms", "2m", "3h", "7d"].map(time);
        let expected = [0, 7000, 7000, 500, 120_000, 10_800_000, 604_800_000].map(|ms| Some(Duration::from_millis(ms)));
        assert_eq!(times, expected);
    }

    #[test]
    fn what_is_shown_is_short() {
        let sizes = [0, 1023, 1024, 1536, 5 << 20, u64::MAX].map(show_size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "15.9 EiB"]);
        assert_eq!([5, 65, 3665, 40 * 86_400].map(show_time), ["0:05", "1:05", "1:01:05", "40 days"]);
    }

    #[test]
    fn what_is_no_number_or_too_large_is_refused() {
        for text in ["", "k", "x", "-1", "+1", "1.5M", "1 k", "1kB", "18446744073709551616", "16777216T"] {
            assert_eq!(size(text), None, "{text:?}");
        }
        for text in ["", "s", "-1s", "1x", "1S", "40000d", "18446744073709551615d"] {
            assert_eq!(time(text), None, "{text:?}");
        }
    }
}
