//! Encrypted networks, and the overlay with IPv6 under an older kernel: tests of `netd` in a virtual machine with Debian's cloud kernel, which
//! has WireGuard.
//!
//! In: what the machine needs; the kernel's modules beside it (`make tools`); the test program `netd`, as it was built beside this one. Out: its
//! verdicts, read from the machine's serial console.

#[path = "../../runtime/tests/machine/mod.rs"]
mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Parts of the test program, each with what is said of it: which tests, and that those are not left out that only this kernel can run.
const PARTS: [(&str, &str); 4] = [
    ("encrypted", "--include-ignored"),
    ("six", ""),
    // Emulation is too slow for what is to come at once.
    ("overlay", "--skip what_a_pod_may_not_reach_refuses_at_once"),
    (
        "names",
        "--skip a_pod_that_holds_connections_open_leaves_some_for_the_others --skip a_pod_that_floods_the_resolver_costs_the_others_no_question",
    ),
];

/// What this kernel is asked for by netd and by the wire of the tests; what they depend on is found out.
const MODULES: [&str; 15] = [
    "bridge",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_hash",
    "nft_limit",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_reject_inet",
    "veth",
    "vxlan",
    "wireguard",
];

#[test]
fn encrypted_networks_work_where_there_is_wireguard() {
    let dir = tempfile::tempdir().unwrap();
    let root = machine::root(dir.path(), &["insmod"]);
    // The tests call netd where cargo built it.
    let netd = Path::new(env!("CARGO_BIN_EXE_rcluster-netd"));
    install_small(netd, dir.path(), &root, netd);
    install_small(&machine::built("netd"), dir.path(), &root, Path::new("/tests/netd"));
    machine::install(Path::new("/usr/bin/setpriv"), &root, Path::new("/usr/bin/setpriv"));
    let mut work = String::new();
    for module in in_order(&machine::kernel().with_file_name("modules")) {
        let file = module.file_name().unwrap().to_str().unwrap().to_owned();
        fs::copy(&module, root.join(&file)).unwrap();
        work += &format!("insmod /{file} || echo VM-NO-MODULE {file}\n");
    }
    for (part, said) in PARTS {
        work += &format!("/tests/netd --test-threads 2 {said} {part}::; echo VM-RESULT {part} $?\n");
    }
    let console = machine::run(dir.path(), &root, &work);
    assert!(!console.contains("VM-NO-MODULE"), "{console}");
    for (part, _) in PARTS {
        assert!(console.contains(&format!("VM-RESULT {part} 0")), "{part} failed in the machine:\n{console}");
    }
    assert!(console.matches("test result: ok.").count() == PARTS.len() && !console.contains("ok. 0 passed"), "{console}");
}

/// Without what is for debuggers, which the machine has no room for.
fn install_small(program: &Path, dir: &Path, root: &Path, target: &Path) {
    let small = dir.join("small");
    let stripped = Command::new("strip").arg("-o").arg(&small).arg(program).status();
    assert!(stripped.expect("strip is a part of gcc's binutils").success());
    machine::install(&small, root, target);
}

/// The modules, each behind those that it depends on. What is no file is a part of the kernel itself.
fn in_order(dir: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}: run make tools", dir.display()));
    let files = listed.map(|entry| entry.unwrap().path());
    let known: BTreeMap<String, PathBuf> = files.filter_map(|path| Some((plain(path.file_stem()?.to_str()?), path))).collect();
    let mut order = Vec::new();
    MODULES.iter().for_each(|name| visit(name, &known, &mut order));
    assert!(order.len() > MODULES.len(), "of {MODULES:?} these are there: {order:?}");
    order
}

fn visit(name: &str, known: &BTreeMap<String, PathBuf>, order: &mut Vec<PathBuf>) {
    let Some(path) = known.get(&plain(name)).filter(|path| !order.contains(path)) else { return };
    needed(&fs::read(path).unwrap()).iter().for_each(|name| visit(name, known, order));
    order.push(path.clone());
}

/// Files have dashes where names have underscores.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// What a module says that it depends on.
fn needed(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let at = module.windows(key.len()).position(|part| part == key).expect("every module says it");
    let value = module[at + key.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}
