//! Decides which group of resctrl holds a container, and what is written there (config-linux.md "IntelRdt"; the kernel's resctrl.rst).
//!
//! In: what a container asks for ([`IntelRdt`]) and what is seen of the file system ([`Observed`]). Out: a [`ResctrlPlan`], or a refusal.
//! Never writes.
//!
//! The specification's rules: without `closID` a group is made and called after the container. With it, and a schema, the group is made
//! if it is missing, and if it is there its schemata must be the same; with it alone, the group must be there, and nothing is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::cgroup::unescape;
use super::check::{IntelRdt, Refusal};
use super::plan::{Plan, Step};

/// What is seen of resctrl before a container is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Where it is mounted.
    pub root: PathBuf,
    /// Of the group of [`group`]; `None` when there is none.
    pub schemata: Option<String>,
    /// `info/L3_MON/mon_features`; empty where nothing can be monitored.
    pub mon_features: Vec<String>,
    /// `info/MB/bandwidth_gran`: bandwidths are rounded up to its multiples.
    pub bandwidth_step: Option<u64>,
}

/// What is to be done for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResctrlPlan {
    pub root: PathBuf,
    /// The group whose limits hold.
    pub group: PathBuf,
    /// Whether it is to be made.
    pub is_new: bool,
    /// Whether `closID` names it.
    pub is_named: bool,
    /// What is written to its schemata.
    pub lines: Vec<String>,
    /// The group to be made in it that monitors the container alone.
    pub monitor: Option<PathBuf>,
}

impl ResctrlPlan {
    /// To be written before anything is made.
    pub fn record(&self) -> ResctrlRecord {
        ResctrlRecord {
            root: self.root.clone(),
            group: self.group.clone(),
            is_made: self.is_new,
            is_named: self.is_named,
            monitor: self.monitor.clone(),
        }
    }
}

/// What is remembered of it until the container is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResctrlRecord {
    pub root: PathBuf,
    pub group: PathBuf,
    /// Whether the group was made for this container.
    pub is_made: bool,
    /// Whether it has a name that other containers may name too.
    pub is_named: bool,
    /// The monitoring group, which is the container's alone.
    pub monitor: Option<PathBuf>,
}

/// Has the process of a plan join the groups whose descriptors follow all others: once it is the container's own, and before it begins
/// anything. Writing 0 moves the writer.
pub fn join(plan: &mut Plan, record: &ResctrlRecord, first_handle: usize) {
    let place = plan.steps.iter().position(|step| *step == Step::NewSession).unwrap_or(0);
    let step = |(index, group): (usize, &Path)| Step::JoinResctrl { group: group.to_owned(), handle: first_handle + index };
    let steps: Vec<Step> = joined(&record.group, record.monitor.as_deref()).enumerate().map(step).collect();
    plan.steps.splice(place..place, steps);
}

/// The groups a process joins, in this order: a monitoring group takes only what is in the group above it (resctrl.rst, "tasks").
pub fn joined<'a>(group: &'a Path, monitor: Option<&'a Path>) -> impl Iterator<Item = &'a Path> {
    [group].into_iter().chain(monitor)
}

/// Where resctrl is mounted, by `/proc/self/mountinfo`; it can be mounted once only.
pub fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (place, what) = line.split_once(" - ")?;
        (what.split(' ').next() == Some("resctrl")).then(|| place.split(' ').nth(4).map(|path| unescape(path).into()))?
    })
}

/// The directory of the group that holds a container.
pub fn group(root: &Path, asked: &IntelRdt, id: &str) -> PathBuf {
    match asked.clos_id.as_deref() {
        Some("/") => root.to_owned(),
        Some(name) => root.join(name),
        None => root.join(id),
    }
}

/// Decides.
pub fn plan(asked: &IntelRdt, id: &str, observed: &Observed) -> Result<ResctrlPlan, Refusal> {
    let refuse = |field: &str, why: String| Err(Refusal { field: format!("linux.intelRdt.{field}"), why });
    let group = group(&observed.root, asked, id);
    let has = |feature: &&str| observed.mon_features.iter().any(|known| known == feature);
    let lacking = [
        ("enableMonitoring", asked.monitoring, !observed.mon_features.is_empty()),
        ("enableCMT", asked.wants_occupancy, has(&"llc_occupancy")),
        ("enableMBM", asked.wants_bandwidth, ["mbm_total_bytes", "mbm_local_bytes"].iter().any(has)),
    ];
    if let Some((field, ..)) = lacking.into_iter().find(|(_, wanted, can)| *wanted && !can) {
        return refuse(field, "this machine cannot monitor that (resctrl's info/L3_MON/mon_features): leave it out".to_owned());
    }
    let is_new = match (asked.clos_id.as_deref(), &observed.schemata) {
        (None, Some(_)) => {
            let why = format!(
                "left out, and the group {} is there already, which is another's: name a group, or remove that one",
                group.display()
            );
            return refuse("closID", why);
        }
        (Some(_), None) if asked.lines.is_empty() => {
            let why = format!("there is no group {}: make it, or say its schemata", group.display());
            return refuse("closID", why);
        }
        (Some(_), Some(actual)) => {
            if let Some(line) = asked.lines.iter().find(|line| !agrees(line, actual, observed.bandwidth_step)) {
                let why = format!("the group {} has other schemata than {line:?}: {}", group.display(), one_line(actual));
                return refuse("closID", why);
            }
            false
        }
        (_, None) => true,
    };
    Ok(ResctrlPlan {
        monitor: asked.monitoring.then(|| group.join("mon_groups").join(id)),
        lines: if is_new { asked.lines.clone() } else { Vec::new() },
        root: observed.root.clone(),
        is_named: asked.clos_id.is_some(),
        group,
        is_new,
    })
}

fn one_line(schemata: &str) -> String {
    schemata.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether a group has what a line asks for; domains the line does not name are as they are (resctrl.rst, "Schemata files").
fn agrees(line: &str, actual: &str, bandwidth_step: Option<u64>) -> bool {
    let Some((resource, asked)) = parse_line(line) else { return false };
    let found = actual.lines().filter_map(parse_line).find(|(name, _)| *name == resource);
    let Some((_, found)) = found else { return false };
    let meant = |value: &str| match (resource, value.parse::<u64>(), bandwidth_step.filter(|step| *step > 0)) {
        ("MB", Ok(number), Some(step)) => number.next_multiple_of(step).to_string(),
        _ => plain(value),
    };
    asked.iter().all(|(domain, value)| found.get(domain).is_some_and(|found| plain(found) == meant(value)))
}

/// The name of a resource and its domains' values.
fn parse_line(line: &str) -> Option<(&str, BTreeMap<&str, &str>)> {
    let (name, domains) = line.trim().split_once(':')?;
    let pairs = domains.split(';').map(|pair| pair.trim().split_once('=').map(|(domain, value)| (domain.trim(), value.trim())));
    Some((name.trim(), pairs.collect::<Option<_>>()?))
}

/// A mask without what does not count.
fn plain(value: &str) -> String {
    let lower = value.to_ascii_lowercase();
    let digits = lower.trim_start_matches("0x").trim_start_matches('0');
    if digits.is_empty() { "0".to_owned() } else { digits.to_owned() }
}

/// What `update --l3-cache-schema` and `--mem-bw-schema` write.
pub fn updated(l3_cache_schema: Option<&str>, mem_bw_schema: Option<&str>) -> Vec<String> {
    let cache = l3_cache_schema.unwrap_or_default().lines().map(str::trim).filter(|line| !line.is_empty());
    let cache = cache.filter(|line| mem_bw_schema.is_none() || !line.starts_with("MB:"));
    cache.chain(mem_bw_schema).map(str::to_owned).collect()
}

/// The files of resctrl that `events` reads, by their path below the group, and those of `info` and the root group by theirs below the root.
pub type Files = BTreeMap<String, String>;

/// runc's `intel_rdt` of an event of the type `stats`. `monitored` holds the files below `mon_data`, by domain and name.
pub fn stats(root: &Files, group: &Files, monitored: &BTreeMap<String, Files>) -> Value {
    let text = |files: &Files, name: &str| files.get(name).map(|text| text.trim().to_owned());
    let line = |files: &Files, resource: &str| {
        let schemata = files.get("schemata")?;
        schemata.lines().map(str::trim).find(|line| line.starts_with(resource)).map(str::to_owned)
    };
    let numbers = |resource: &str, names: &[&str]| {
        let found = names.iter().filter_map(|name| {
            let number: u64 = text(root, &format!("info/{resource}/{name}"))?.parse().ok()?;
            Some(((*name).to_owned(), Value::from(number)))
        });
        found.collect::<Map<_, _>>()
    };
    let mut stats = Map::new();
    let mut cache = numbers("L3", &["min_cbm_bits", "num_closids"]);
    cache.extend(text(root, "info/L3/cbm_mask").map(|mask| ("cbm_mask".to_owned(), Value::from(mask))));
    let bandwidth = numbers("MB", &["bandwidth_gran", "delay_linear", "min_bandwidth", "num_closids"]);
    stats.extend((!cache.is_empty()).then(|| ("l3_cache_info".to_owned(), Value::from(cache))));
    stats.extend((!bandwidth.is_empty()).then(|| ("mem_bw_info".to_owned(), Value::from(bandwidth))));
    let lines = [
        ("l3_cache_schema_root", line(root, "L3")),
        ("l3_cache_schema", line(group, "L3")),
        ("mem_bw_schema_root", line(root, "MB")),
        ("mem_bw_schema", line(group, "MB")),
    ];
    stats.extend(lines.into_iter().filter_map(|(name, line)| Some((name.to_owned(), Value::from(line?)))));
    let per_domain = |names: &[&str]| {
        let domain = |files: &Files| {
            let found = names.iter().filter_map(|name| Some(((*name).to_owned(), Value::from(text(files, name)?.parse::<u64>().ok()?))));
            found.collect::<Map<_, _>>()
        };
        monitored.values().map(domain).filter(|found| !found.is_empty()).map(Value::from).collect::<Vec<_>>()
    };
    for (name, domains) in
        [("mbm_stats", per_domain(&["mbm_total_bytes", "mbm_local_bytes"])), ("cmt_stats", per_domain(&["llc_occupancy"]))]
    {
        if !domains.is_empty() {
            stats.insert(name.to_owned(), json!(domains));
        }
    }
    stats.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "    MB:0=100;1= 20\n    L3:0=fffff;1=000ff\n";

    /// `closID`, lines, the group's schemata if it is there, and the group, whether it is new and how many lines are written, or the refusal.
    type Case = (Option<&'static str>, &'static [&'static str], Option<&'static str>, Result<(&'static str, bool, usize), &'static str>);

    fn asked(clos_id: Option<&str>, lines: &[&str]) -> IntelRdt {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        IntelRdt { clos_id: clos_id.map(str::to_owned), lines, monitoring: false, wants_occupancy: false, wants_bandwidth: false }
    }

    fn seen(schemata: Option<&str>) -> Observed {
        Observed {
            root: "/r".into(),
            schemata: schemata.map(str::to_owned),
            mon_features: vec!["llc_occupancy".to_owned()],
            bandwidth_step: Some(10),
        }
    }

    #[test]
    fn each_case_of_the_specification() {
        let cases: [Case; 8] = [
            (None, &[], None, Ok(("/r/c", true, 0))),
            (None, &["L3:0=f"], None, Ok(("/r/c", true, 1))),
            (None, &[], Some(SHOWN), Err("linux.intelRdt.closID: left out, and the group /r/c is there already")),
            (Some("g"), &["L3:0=f"], None, Ok(("/r/g", true, 1))),
            (Some("g"), &["L3:0=fffff"], Some(SHOWN), Ok(("/r/g", false, 0))),
            (
                Some("g"),
                &["L3:0=1"],
                Some(SHOWN),
                Err("linux.intelRdt.closID: the group /r/g has other schemata than \"L3:0=1\": MB:0=100;1= 20 L3"),
            ),
            (Some("g"), &[], None, Err("linux.intelRdt.closID: there is no group /r/g")),
            (Some("/"), &[], Some(SHOWN), Ok(("/r", false, 0))),
        ];
        for (clos_id, lines, schemata, expected) in cases {
            match (plan(&asked(clos_id, lines), "c", &seen(schemata)), expected) {
                (Ok(plan), Ok((group, is_new, lines))) => {
                    assert_eq!((plan.group.to_str().unwrap(), plan.is_new, plan.lines.len()), (group, is_new, lines));
                }
                (Err(refusal), Err(text)) => assert!(refusal.to_string().starts_with(text), "{refusal}"),
                (plan, expected) => panic!("{plan:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn what_is_monitored() {
        let monitoring = |clos_id| IntelRdt { monitoring: true, ..asked(clos_id, &[]) };
        let monitor = |clos_id, schemata| plan(&monitoring(clos_id), "c", &seen(schemata)).unwrap().monitor.unwrap();
        assert_eq!(monitor(None, None), Path::new("/r/c/mon_groups/c"));
        assert_eq!(monitor(Some("g"), Some(SHOWN)), Path::new("/r/g/mon_groups/c"));
        assert_eq!(monitor(Some("/"), Some(SHOWN)), Path::new("/r/mon_groups/c"));
        let blind = Observed { mon_features: Vec::new(), ..seen(None) };
        assert!(plan(&monitoring(None), "c", &blind).unwrap_err().to_string().starts_with("linux.intelRdt.enableMonitoring: this machine"));
        let older = |occupancy, bandwidth| IntelRdt { wants_occupancy: occupancy, wants_bandwidth: bandwidth, ..asked(None, &[]) };
        assert!(plan(&older(true, false), "c", &seen(None)).is_ok());
        assert!(plan(&older(true, true), "c", &seen(None)).unwrap_err().to_string().starts_with("linux.intelRdt.enableMBM: this machine"));
    }

    #[test]
    fn lines_agree_with_what_is_shown() {
        for line in ["L3:0=fffff", "L3:1=ff", "L3:0=0xFFFFF;1=0ff", " L3: 0=fffff", "MB:1=20", "MB:0=95;1=15"] {
            assert!(agrees(line, SHOWN, Some(10)), "{line:?}");
        }
        for line in ["L3:0=ffffe", "L3:2=ff", "L2:0=1", "L3", "L3:0", "MB:0=90", ""] {
            assert!(!agrees(line, SHOWN, Some(10)), "{line:?}");
        }
        assert!(!agrees("MB:1=15", SHOWN, None));
    }

    #[test]
    fn where_it_is_mounted() {
        let line = |kind: &str| format!("30 1 0:26 / /sys/fs/res\\040ctrl rw - {kind} {kind} rw\n");
        assert_eq!(mount_point(&(line("sysfs") + &line("resctrl"))), Some("/sys/fs/res ctrl".into()));
        assert_eq!(mount_point(&line("sysfs")), None);
    }

    #[test]
    fn what_events_tell() {
        let files = |files: &[(&str, &str)]| files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect::<Files>();
        let root = files(&[
            ("info/L3/cbm_mask", "fffff\n"),
            ("info/L3/num_closids", "16\n"),
            ("info/MB/bandwidth_gran", "10\n"),
            ("schemata", SHOWN),
        ]);
        let group = files(&[("schemata", "    L3:0=f\n")]);
        let domain = files(&[("llc_occupancy", "4096\n"), ("mbm_total_bytes", "Unavailable\n"), ("mbm_local_bytes", "7\n")]);
        let expected = json!({
            "l3_cache_info": {"cbm_mask": "fffff", "num_closids": 16}, "mem_bw_info": {"bandwidth_gran": 10},
            "l3_cache_schema_root": "L3:0=fffff;1=000ff", "mem_bw_schema_root": "MB:0=100;1= 20", "l3_cache_schema": "L3:0=f",
            "mbm_stats": [{"mbm_local_bytes": 7}], "cmt_stats": [{"llc_occupancy": 4096}],
        });
        assert_eq!(stats(&root, &group, &BTreeMap::from([("mon_L3_00".to_owned(), domain)])), expected);
        assert_eq!(stats(&Files::new(), &Files::new(), &BTreeMap::new()), json!({}));
    }

    #[test]
    fn what_update_writes() {
        assert_eq!(updated(Some("L3:0=f\nMB:0=10"), Some("MB:0=20")), ["L3:0=f", "MB:0=20"]);
        assert_eq!(updated(Some("L3:0=f\n"), None), ["L3:0=f"]);
    }
}
