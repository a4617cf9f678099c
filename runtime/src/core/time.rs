//! Instants as text (RFC 3339, UTC, nanoseconds), and durations as Go writes them.
//!
//! In: seconds and nanoseconds since 1970; `1m30s`. Out: `2026-01-31T12:00:00.000000001Z`; a duration. Never reads a clock.

use std::time::Duration;

/// The text of an instant; years past 9999 are written with more digits.
pub fn rfc3339(seconds: u64, nanoseconds: u32) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z")
}

/// The Gregorian date of a day since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Reads a duration as Go's `time.ParseDuration` does, but none below zero: numbers, each with its unit, in a row.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(unit_at);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = next;
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let read = ["5s", "100ms", "1m30s", "1.5h", "2us"].map(|text| parse_duration(text).unwrap().as_micros());
        assert_eq!(read, [5_000_000, 100_000, 90_000_000, 5_400_000_000, 2]);
        for text in ["", "5", "s", "-5s", "5x", "1.2.3s", "99999999999999999999h"] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn known_instants() {
        let cases = [
            ((0, 0), "1970-01-01T00:00:00.000000000Z"),
            ((951_782_400, 1), "2000-02-29T00:00:00.000000001Z"),
            ((1_709_251_199, 999_999_999), "2024-02-29T23:59:59.999999999Z"),
            ((4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z"),
        ];
        for ((seconds, nanoseconds), text) in cases {
            assert_eq!(rfc3339(seconds, nanoseconds), text);
        }
    }
}
