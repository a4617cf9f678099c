//! Decides which images go when the disk fills up, or when nobody has used them for long.
//!
//! In: how full the disk is, the images with their last use, the limits, the time. Out: the one image to remove next, and why. It is asked
//! again after each, since images share layers and only the disk knows what came free. Never names an image that is in use, or that was
//! used so short ago that a task may be about to start on it. The two limits are those of the kubelet: above `high` it begins to make
//! room, and goes on until `low` is reached, so that it does not begin anew with every image that comes.

use rcluster_api::resource::Millis;

/// When images are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Percent of the disk in use above which room is made; 100: never.
    pub high_percent: u64,
    /// Percent of the disk in use at which that is enough.
    pub low_percent: u64,
    /// An image that was not used for so long goes in any case; `None`: not for its age.
    pub age_max: Option<Millis>,
    /// An image that was used within this stays, however full the disk.
    pub age_min: Millis,
}

/// How full the disk is that holds the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub bytes_used: u64,
    /// To those who are not root.
    pub bytes_available: u64,
}

/// An image under all its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub names: Vec<String>,
    pub in_use: bool,
    /// Unix time.
    pub used_at_ms: u64,
}

/// Why an image goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Age,
    Room,
}

impl Disk {
    /// Percent in use of what there is for all, rounded up, as df(1) shows it.
    pub fn used_percent(self) -> u64 {
        let (used, available) = (u128::from(self.bytes_used), u128::from(self.bytes_available));
        u64::try_from((used * 100).div_ceil((used + available).max(1))).unwrap_or(100)
    }
}

/// Whether room is to be made, given whether that has begun.
pub fn needs_room(disk: Disk, begun: bool, limits: &Limits) -> bool {
    disk.used_percent() > if begun { limits.low_percent } else { limits.high_percent }
}

/// The image to remove next: the one that was not used for longest.
pub fn next<'a>(images: &'a [Candidate], needs_room: bool, limits: &Limits, now_ms: u64) -> Option<(&'a Candidate, Reason)> {
    let oldest = images.iter().filter(|image| !image.in_use).min_by_key(|image| (image.used_at_ms, &image.names))?;
    let idle = Millis(now_ms.saturating_sub(oldest.used_at_ms));
    if limits.age_max.is_some_and(|max| idle > max) {
        return Some((oldest, Reason::Age));
    }
    (needs_room && idle >= limits.age_min).then_some((oldest, Reason::Room))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { high_percent: 85, low_percent: 80, age_max: None, age_min: Millis(100) };

    fn disk(bytes_available: u64) -> Disk {
        Disk { bytes_used: 1000 - bytes_available, bytes_available }
    }

    /// `NAME USED_AT [runs]` each.
    fn next_of(lines: &[&str], needs_room: bool, limits: &Limits, now_ms: u64) -> String {
        let image = |line: &&str| {
            let words: Vec<&str> = line.split(' ').collect();
            let used_at_ms = words[1].parse().expect("a number");
            Candidate { names: vec![words[0].to_owned()], in_use: words.get(2) == Some(&"runs"), used_at_ms }
        };
        let images: Vec<Candidate> = lines.iter().map(image).collect();
        next(&images, needs_room, limits, now_ms).map_or_else(String::new, |(image, reason)| format!("{} {reason:?}", image.names[0]))
    }

    #[test]
    fn room_is_made_from_above_the_high_limit_down_to_the_low_one() {
        assert!(!needs_room(disk(150), false, &LIMITS));
        assert!(needs_room(disk(149), false, &LIMITS), "one byte more is more");
        assert!(needs_room(disk(150), true, &LIMITS));
        assert!(needs_room(disk(199), true, &LIMITS));
        assert!(!needs_room(disk(200), true, &LIMITS));
        assert!(!needs_room(disk(0), false, &Limits { high_percent: 100, ..LIMITS }), "100 is never");
        assert!(!needs_room(Disk { bytes_used: 0, bytes_available: 0 }, false, &LIMITS));
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_what_runs_never() {
        let images = ["young 950", "middle 500", "runs 1 runs", "old 300"];
        assert_eq!(next_of(&images, true, &LIMITS, 1000), "old Room");
        assert_eq!(next_of(&images, false, &LIMITS, 1000), "");
        assert_eq!(next_of(&["young 950", "runs 1 runs"], true, &LIMITS, 1000), "", "a task may be about to start on it");
        assert_eq!(next_of(&["young 950", "runs 1 runs"], true, &LIMITS, 1050), "young Room");
        assert_eq!(next_of(&["later 2000"], true, &LIMITS, 1000), "", "the clock was set back");
        assert_eq!(next_of(&[], true, &LIMITS, 1000), "");
    }

    #[test]
    fn what_nobody_has_used_for_long_goes_from_an_empty_disk_too() {
        let limits = Limits { age_max: Some(Millis(400)), ..LIMITS };
        assert_eq!(next_of(&["a 600", "b 599", "c 1 runs"], false, &limits, 1000), "b Age");
        assert_eq!(next_of(&["a 600", "c 1 runs"], false, &limits, 1000), "");
    }
}
