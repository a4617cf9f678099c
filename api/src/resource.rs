//! Amounts as people write them: `64MiB`, `0.5` CPUs, `1m30s`. Parsed once, printed in the shortest exact form.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A size in bytes; written with B, KiB, MiB, GiB, TiB (or k, m, g, t, as Compose has them, also binary) or as a bare number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

/// CPU time in thousandths of a CPU; written as a decimal number of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cpus(pub u64);

/// A time span in milliseconds; written as Go and Compose do: `500ms`, `10s`, `1m30s`, `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = UNITS.iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size)).copied().unwrap_or(("B", 1));
        write!(formatter, "{}{unit}", self.0 / size)
    }
}

impl Bytes {
    /// Rounded to one decimal for people: `7.1 GiB`.
    pub fn human(self) -> String {
        let (unit, size) = UNITS.iter().find(|(_, size)| self.0 >= *size).copied().unwrap_or(("B", 1));
        let tenths = u128::from(self.0) * 10 / u128::from(size);
        if tenths.is_multiple_of(10) { format!("{} {unit}", tenths / 10) } else { format!("{}.{} {unit}", tenths / 10, tenths % 10) }
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size: write a number with B, KiB, MiB, GiB or TiB, such as 64MiB");
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" | "ki" => 1 << 10,
            "m" | "mb" | "mib" | "mi" => 1 << 20,
            "g" | "gb" | "gib" | "gi" => 1 << 30,
            "t" | "tb" | "tib" | "ti" => 1 << 40,
            _ => return Err(wrong()),
        };
        scaled(number, factor).map(Self).ok_or_else(wrong)
    }
}

/// `number` (decimal) times `factor`, rounded down; `None` when it is no number or too large.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction_value: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let part = fraction_value * u128::from(factor) / 10u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(factor)?.checked_add(u64::try_from(part).ok()?)
}

impl fmt::Display for Cpus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        formatter.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let read = trimmed.strip_suffix('m').map_or_else(|| scaled(trimmed, 1000), |millis| millis.parse().ok());
        read.map(Self).ok_or_else(|| format!("{text:?} is not an amount of CPU: write a number of CPUs such as 0.5, or 500m"))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return formatter.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if rest >= size {
                write!(formatter, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        Ok(())
    }
}

impl FromStr for Millis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a time span: write it like 500ms, 10s, 1m30s, 2h or 90d");
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(wrong());
        }
        if rest == "0" {
            return Ok(Self(0));
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let factor = match unit {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(wrong()),
            };
            total = total.checked_add(scaled(number, factor).ok_or_else(wrong)?).ok_or_else(wrong)?;
            rest = tail;
        }
        Ok(Self(total))
    }
}

impl Millis {
    /// The span as the standard library has it.
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// Text or number in, text out; one implementation for the three.
struct AmountVisitor<T> {
    expecting: &'static str,
    number: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for AmountVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.number)(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        (self.number)(&number.to_string()).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        (self.number)(&number.to_string()).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        (self.number)(&number.to_string()).map_err(E::custom)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AmountVisitor { expecting: "a size such as 64MiB", number: Self::from_str })
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) {
            serializer.serialize_u64(self.0 / 1000)
        } else {
            // Three decimals are exact enough in a double to print as they were read.
            #[allow(clippy::cast_precision_loss, reason = "amounts of CPU are far below 2^52")]
            serializer.serialize_f64(self.0 as f64 / 1000.0)
        }
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AmountVisitor { expecting: "a number of CPUs such as 0.5", number: Self::from_str })
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AmountVisitor { expecting: "a time span such as 10s", number: Self::from_str })
    }
}

/// What a container may use (limits) or is promised (reservations). `None`: not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amounts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

impl Amounts {
    /// Whether nothing is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes, printed) in
            [("64MiB", 64 << 20, "64MiB"), ("1.5g", 3 << 29, "1536MiB"), ("100", 100, "100B"), ("2048", 2048, "2KiB"), ("0", 0, "0B")]
        {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
            assert_eq!(Bytes(bytes).to_string(), printed);
        }
        for text in ["", "MiB", "-1", "1.2.3", "64 apples", "99999999999TiB"] {
            text.parse::<Bytes>().unwrap_err();
        }
        assert_eq!(Bytes(7_700_000_000).human(), "7.1 GiB");
        assert_eq!(Bytes(64 << 30).human(), "64 GiB");
    }

    #[test]
    fn cpus_read_and_print() {
        for (text, millis, printed) in [("0.5", 500, "0.5"), ("2", 2000, "2"), ("250m", 250, "0.25"), (".001", 1, "0.001")] {
            assert_eq!(text.parse::<Cpus>().unwrap(), Cpus(millis));
            assert_eq!(Cpus(millis).to_string(), printed);
        }
        "half".parse::<Cpus>().unwrap_err();
    }

    #[test]
    fn spans_read_and_print() {
        for (text, millis, printed) in
            [("1m30s", 90_000, "1m30s"), ("500ms", 500, "500ms"), ("1.5s", 1500, "1s500ms"), ("0", 0, "0s"), ("1d", 86_400_000, "24h")]
        {
            assert_eq!(text.parse::<Millis>().unwrap(), Millis(millis));
            assert_eq!(Millis(millis).to_string(), printed);
        }
        for text in ["10", "s", "1w", ""] {
            text.parse::<Millis>().unwrap_err();
        }
    }
}
