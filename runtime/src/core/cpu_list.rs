//! Lists of processors or memory nodes (cpuset(7), "List format"): `0-3,7`.
//!
//! In: a list. Out: its numbers, sorted, each once. Never asks how many there are.

/// More than any kernel is built for.
const NUMBER_MAX: u32 = 65_535;

/// Reads a list; the error says what is wrong with it.
pub fn parse(list: &str) -> Result<Vec<u32>, String> {
    let mut numbers = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| match text.trim().parse::<u32>() {
            Ok(number) if number <= NUMBER_MAX => Ok(number),
            _ => Err(format!("{part:?} in {list:?} is no number below {NUMBER_MAX} and no range of such")),
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("{part:?} in {list:?} begins after its end"));
        }
        numbers.extend(first..=last);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_what_is_none() {
        assert_eq!(parse("0-3,7, 2\n").unwrap(), [0, 1, 2, 3, 7]);
        for bad in ["", "a", "1-", "-1", "3-1", "1,,2", "65536", "1-99999999999", "1-2-3"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
