//! What is done, on a directory that imitates resctrl: its files as the kernel shows them, filled and emptied by the test in the kernel's
//! place. What the kernel makes of a line is not seen here.

use super::*;

/// Fills a group as it is made, and takes it away with all the kernel keeps in it.
struct Imitated {
    root: tempfile::TempDir,
}

impl Imitated {
    fn new() -> Self {
        let imitated = Self { root: tempfile::tempdir().unwrap() };
        imitated.fill(imitated.root.path());
        for (name, text) in [
            ("info/L3/cbm_mask", "fffff\n"),
            ("info/L3_MON/mon_features", "llc_occupancy\nmbm_total_bytes\nmbm_local_bytes\n"),
            ("info/MB/bandwidth_gran", "10\n"),
            ("info/last_cmd_status", "ok\n"),
        ] {
            let path = imitated.root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        imitated
    }

    fn fill(&self, group: &Path) {
        let is_monitor = group.parent().is_some_and(|parent| parent.ends_with("mon_groups"));
        if !is_monitor {
            fs::write(group.join(SCHEMATA), "    L3:0=fffff\n").unwrap();
            fs::create_dir(group.join("mon_groups")).unwrap();
        }
        fs::write(group.join(TASKS), "").unwrap();
        fs::create_dir_all(group.join("mon_data/mon_L3_00")).unwrap();
        fs::write(group.join("mon_data/mon_L3_00/llc_occupancy"), "4096\n").unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn plan(&self, asked: &IntelRdt) -> ResctrlPlan {
        resctrl::plan(asked, "c", &observe(self.root.path(), asked, "c")).unwrap()
    }
}

impl Groups for Imitated {
    fn make(&self, group: &Path) -> io::Result<()> {
        Mounted.make(group)?;
        self.fill(group);
        Ok(())
    }

    fn remove(&self, group: &Path) -> io::Result<()> {
        fs::remove_dir_all(group)
    }
}

fn asked(clos_id: Option<&str>, lines: &[&str], monitoring: bool) -> IntelRdt {
    let lines = lines.iter().map(|line| (*line).to_owned()).collect();
    IntelRdt { clos_id: clos_id.map(str::to_owned), lines, monitoring, wants_occupancy: false, wants_bandwidth: false }
}

#[test]
fn a_group_of_its_own_lives_as_long_as_the_container() {
    let imitated = Imitated::new();
    let plan = imitated.plan(&asked(None, &["L3:0=f"], true));
    let mut record = plan.record();
    let joins = make(&imitated, &plan, &mut record).unwrap();
    assert_eq!(joins.len(), 2);
    // A regular file keeps the end of what was there, which the kernel's does not.
    assert!(fs::read_to_string(imitated.path("c/schemata")).unwrap().starts_with("L3:0=f\n"));
    for join in joins {
        rustix::io::write(&join, b"0").unwrap();
    }
    for tasks in ["c/tasks", "c/mon_groups/c/tasks"] {
        assert_eq!(fs::read_to_string(imitated.path(tasks)).unwrap(), "0", "{tasks}");
    }
    assert_eq!(stats(&record)["cmt_stats"][0]["llc_occupancy"], 4096);
    remove(&imitated, &record).unwrap();
    assert!(!imitated.path("c").exists());
    remove(&imitated, &record).unwrap();
}

#[test]
fn another_that_comes_between_is_left_alone() {
    let imitated = Imitated::new();
    let plan = imitated.plan(&asked(None, &[], false));
    let mut record = plan.record();
    imitated.make(&imitated.path("c")).unwrap();
    assert!(format!("{:#}", make(&imitated, &plan, &mut record).unwrap_err()).contains("linux.intelRdt: make the group"));
    remove(&imitated, &record).unwrap();
    assert!(imitated.path("c").exists());
    // The same for a monitoring group in a group that is there.
    let plan = imitated.plan(&asked(Some("c"), &[], true));
    let mut record = plan.record();
    imitated.make(&imitated.path("c/mon_groups/c")).unwrap();
    make(&imitated, &plan, &mut record).unwrap_err();
    remove(&imitated, &record).unwrap();
    assert!(imitated.path("c/mon_groups/c").exists());
}

#[test]
fn a_named_group_stays_while_others_live_in_it() {
    let imitated = Imitated::new();
    let plan = imitated.plan(&asked(Some("gold"), &["L3:0=f"], false));
    let mut record = plan.record();
    make(&imitated, &plan, &mut record).unwrap();
    fs::write(imitated.path("gold/tasks"), format!("{}\n", std::process::id())).unwrap();
    remove(&imitated, &record).unwrap();
    assert!(imitated.path("gold").exists());
    fs::write(imitated.path("gold/tasks"), "").unwrap();
    imitated.make(&imitated.path("gold/mon_groups/other")).unwrap();
    remove(&imitated, &record).unwrap();
    assert!(imitated.path("gold").exists());
    imitated.remove(&imitated.path("gold/mon_groups/other")).unwrap();
    remove(&imitated, &record).unwrap();
    assert!(!imitated.path("gold").exists());
}

#[test]
fn a_group_that_was_there_stays() {
    let imitated = Imitated::new();
    imitated.make(&imitated.path("gold")).unwrap();
    let plan = imitated.plan(&asked(Some("gold"), &["L3:0=fffff"], true));
    let mut record = plan.record();
    make(&imitated, &plan, &mut record).unwrap();
    assert_eq!(fs::read_to_string(imitated.path("gold/schemata")).unwrap(), "    L3:0=fffff\n", "nothing is written");
    remove(&imitated, &record).unwrap();
    assert!(imitated.path("gold").exists() && !imitated.path("gold/mon_groups/c").exists());
}

#[test]
fn an_update_that_fails_says_what_the_kernel_said() {
    let imitated = Imitated::new();
    let plan = imitated.plan(&asked(None, &[], false));
    let mut record = plan.record();
    make(&imitated, &plan, &mut record).unwrap();
    update(&record, &["L3:0=0ffff".to_owned()]).unwrap();
    assert_eq!(schemata(&record).unwrap()[0], "L3:0=0ffff");
    // What refuses every write stands for the kernel that refuses this one.
    fs::remove_file(imitated.path("c/schemata")).unwrap();
    std::os::unix::fs::symlink("/dev/full", imitated.path("c/schemata")).unwrap();
    fs::write(imitated.path("info/last_cmd_status"), "Mask f0f has non-consecutive 1-bits\n").unwrap();
    let error = restore(&record, &["L3:0=f0f".to_owned()]).unwrap_err().to_string();
    assert!(error.starts_with("linux.intelRdt: write \"L3:0=f0f\" to ") && error.contains("non-consecutive"), "{error}");
}
