//! The command line: positional words and `--flag value` pairs, checked against what the command knows.

use std::collections::BTreeMap;
use std::time::Duration;

/// Why a command line is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Usage(pub String);

/// A checked command line: exactly the positional words asked for, and known flags only.
#[derive(Debug, PartialEq, Eq)]
pub struct Args {
    positional: Vec<String>,
    flags: BTreeMap<String, u64>,
}

impl Args {
    /// Splits `words`; all flags take a number, as `--flag N` or `--flag=N`.
    pub fn parse(words: &[String], positional_count: usize, known: &[&str]) -> Result<Self, Usage> {
        let (mut positional, mut flags) = (Vec::new(), BTreeMap::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--") else {
                positional.push(word.clone());
                continue;
            };
            let (flag, value) = match flag.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (flag, None),
            };
            if !known.contains(&flag) {
                return Err(Usage(format!("unknown flag --{flag}")));
            }
            let value = value.or_else(|| words.next().map(String::as_str)).ok_or_else(|| Usage(format!("--{flag} needs a value")))?;
            let number = value.parse().map_err(|_| Usage(format!("--{flag} {value:?} is not a number")))?;
            flags.insert(flag.to_owned(), number);
        }
        if positional.len() != positional_count {
            return Err(Usage(format!("{} arguments given, {positional_count} needed", positional.len())));
        }
        Ok(Self { positional, flags })
    }

    /// The positional word at `index`, which must be below the count that was parsed for.
    pub fn positional(&self, index: usize) -> &str {
        &self.positional[index]
    }

    /// A flag's number, or `default`.
    pub fn number(&self, flag: &str, default: u64) -> Result<u64, Usage> {
        Ok(self.optional(flag)?.unwrap_or(default))
    }

    /// A flag's number, if it was given.
    pub fn optional(&self, flag: &str) -> Result<Option<u64>, Usage> {
        match self.flags.get(flag) {
            Some(number) if *number > u64::from(u32::MAX) => Err(Usage(format!("--{flag} {number} is too large (at most {})", u32::MAX))),
            given => Ok(given.copied()),
        }
    }

    /// A flag's milliseconds, or `default_ms`.
    pub fn millis(&self, flag: &str, default_ms: u64) -> Result<Duration, Usage> {
        self.number(flag, default_ms).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::{Args, Usage};

    fn parse(text: &str) -> Result<Args, Usage> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Args::parse(&words, 1, &["count"])
    }

    #[test]
    fn flags_stand_anywhere() {
        for text in ["web --count 3", "--count 3 web", "--count=3 web"] {
            let args = parse(text).unwrap();
            assert_eq!((args.positional(0), args.number("count", 1).unwrap()), ("web", 3), "{text}");
        }
        assert_eq!(parse("web").unwrap().number("count", 1), Ok(1));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (text, why) in [
            ("web --size 3", "unknown flag --size"),
            ("web --count", "--count needs a value"),
            ("web --count x", "--count \"x\" is not a number"),
            ("", "0 arguments given, 1 needed"),
            ("web db", "2 arguments given, 1 needed"),
        ] {
            assert_eq!(parse(text), Err(Usage(why.to_owned())), "{text}");
        }
    }
}
