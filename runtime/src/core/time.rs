//! Instants as text (RFC 3339, UTC, nanoseconds).
//!
//! In: seconds and nanoseconds since 1970. Out: `2026-01-31T12:00:00.000000001Z`. Never reads a clock.

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

#[cfg(test)]
mod tests {
    use super::*;

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
