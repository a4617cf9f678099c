//! Every example is accepted, stands on its own, and plans as a first deploy.

use std::fs;
use std::path::Path;

use rcluster_deploy::native::{Source, parse};
use rcluster_deploy::plan::{Action, Current, plan};

#[test]
fn every_example_parses_and_plans() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "yaml")) {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let desired = parse(&[Source { name: &name, text: &text }], None, &|_, _| Err("no files here".to_owned()))
            .unwrap_or_else(|errors| panic!("{errors:?}"));
        let plan = plan(&desired, &Current::default(), None).unwrap();
        assert!(plan.problems.is_empty(), "{name}: {:?}", plan.problems);
        assert!(!plan.steps.is_empty() && plan.steps.iter().all(|step| step.action == Action::Create), "{name}");
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} examples were found");
}
