use rcluster_api::object::{Stamp, TaskNetwork, TaskStatus};
use rcluster_api::resource::{Bytes, Cpus, Millis};
use rcluster_api::spec::{ContainerSpec, TaskTemplate};
use rcluster_api::task::TaskState;

use super::*;

fn task() -> Task {
    Task {
        id: "0123456789abcdef".into(),
        stamp: Stamp::default(),
        service_id: "s".into(),
        service: "web".into(),
        stack: "shop".into(),
        slot: 2,
        name: "web.2".into(),
        template: TaskTemplate { stop_grace: Millis(1000), ..TaskTemplate::default() },
        spec_version: 1,
        desired_state: TaskState::Running,
        restarts: 0,
        restarts_in_window: 0,
        window_start_ms: 0,
        start_after_ms: 0,
        node_id: Some("n".into()),
        node: "n1".into(),
        networks: vec![TaskNetwork {
            network_id: "net".into(),
            network: "front".into(),
            ip: "10.128.0.5".parse().expect("an address"),
            ip6: None,
            aliases: Vec::new(),
        }],
        status: TaskStatus { state: TaskState::Assigned, message: String::new(), since_ms: 0, containers: Vec::new(), ending: false },
        leave_ms: 0,
    }
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: vec!["/probe".into()],
        cmd: vec!["serve".into()],
        env: vec!["PORT=80".into(), "MODE=image".into()],
        workdir: "/srv".into(),
        user: String::new(),
        stop_signal: "SIGQUIT".into(),
        volumes: vec!["/data".into()],
        exposed_ports: vec!["443/tcp".into(), "80/tcp".into()],
        labels: [("maintainer".to_owned(), "somebody".to_owned())].into(),
        ..ImageConfig::default()
    }
}

fn input<'a>(spec: &'a ContainerSpec, identity: &'a Identity, network: &'a Network) -> Input<'a> {
    Input {
        task: Box::leak(Box::new(task())),
        spec,
        name: "web",
        image: Box::leak(Box::new(image())),
        identity,
        network,
        pod_pid: None,
        node: "n1",
        cgroup_parent: "/rcluster/n1",
        rootfs: Path::new("/run/x/rootfs"),
        files: Path::new("/run/x/etc"),
        data: Path::new("/run/x/data/web"),
        volumes: Path::new("/var/x/volumes"),
        image_volumes: &[],
        binds: const { &BTreeMap::new() },
        devices: &[],
    }
}

fn golden(spec: &ContainerSpec, identity: &Identity, network: &Network, pod_pid: Option<u32>, (name, expected): (&str, &str)) {
    let image_volumes = [("/data".into(), "/run/x/rootfs/data".into())];
    let input = Input { pod_pid, image_volumes: &image_volumes, ..input(spec, identity, network) };
    let mut config: serde_json::Value = serde_json::from_slice(&config_json(&input).expect("a configuration")).expect("JSON");
    // Its own golden text shows it; every container has it.
    let seccomp = config["linux"].as_object_mut().expect("an object").remove("seccomp").expect("a profile");
    assert_eq!(seccomp["defaultAction"], "SCMP_ACT_ERRNO");
    let text = serde_json::to_string_pretty(&config).expect("text");
    if text.trim() != expected.trim() {
        let got = std::env::temp_dir().join(format!("rcluster-{name}"));
        std::fs::write(&got, &text).expect("write what was got");
        panic!("differs from the golden text; what was made is in {}", got.display());
    }
}

#[test]
fn the_first_container_of_a_pod_with_limits_as_root() {
    let mut spec = ContainerSpec { read_only: true, ..ContainerSpec::default() };
    spec.env.insert("MODE".into(), "spec".into());
    spec.resources.limits.memory = Some(Bytes(64 << 20));
    spec.resources.limits.cpus = Some(Cpus(500));
    spec.resources.limits.pids = Some(32);
    let identity = Identity { home: "/root".into(), ..Identity::default() };
    let network = Network { netns_path: "/run/netns/0123456789abcdef".into(), dns: "169.254.1.1".into(), search: Vec::new() };
    golden(&spec, &identity, &network, None, ("first.json", include_str!("../golden/first.json")));
}

#[test]
fn a_second_container_joins_the_pod_and_a_user_without_privileges_has_no_capabilities() {
    let spec = ContainerSpec { args: vec!["-v".into()], ..ContainerSpec::default() };
    let identity = Identity { uid: 33, gid: 34, additional_gids: vec![40], home: "/srv".into() };
    golden(&spec, &identity, &Network::default(), Some(4711), ("second.json", include_str!("../golden/second.json")));
}

#[test]
fn a_container_with_a_terminal_is_told_its_kind_unless_it_says_otherwise() {
    let made = |spec: &ContainerSpec| {
        let (identity, network) = (Identity::default(), Network::default());
        let process: Process = process(&input(spec, &identity, &network)).expect("a process");
        let term = process.env().iter().flatten().find(|pair| pair.starts_with("TERM=")).cloned();
        (process.terminal(), term)
    };
    let mut spec = ContainerSpec { tty: true, ..ContainerSpec::default() };
    assert_eq!(made(&spec), (Some(true), Some("TERM=xterm".to_owned())));
    spec.env.insert("TERM".into(), "linux".into());
    assert_eq!(made(&spec), (Some(true), Some("TERM=linux".to_owned())));
    assert_eq!(made(&ContainerSpec::default()), (Some(false), None));
}

#[test]
fn command_and_args_replace_the_images_as_in_docker() {
    let check = |command: &[&str], arguments: &[&str], expected: &str| {
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let spec = ContainerSpec { command: strings(command), args: strings(arguments), ..ContainerSpec::default() };
        assert_eq!(args(&spec, &image()).expect("args").join(" "), expected);
    };
    check(&[], &[], "/probe serve");
    check(&[], &["-v"], "/probe -v");
    check(&["/bin/sh"], &[], "/bin/sh");
    check(&["/bin/sh"], &["-c", "id"], "/bin/sh -c id");
}

#[test]
fn what_cannot_run_is_refused_in_words() {
    let spec = ContainerSpec::default();
    let error = args(&spec, &ImageConfig::default()).expect_err("nothing to run");
    assert_eq!(error, "image and spec name no command: set `command` or `args`");
    let spec = ContainerSpec { workdir: "srv".into(), ..ContainerSpec::default() };
    assert_eq!(workdir(&spec, &image()).expect_err("relative"), "working directory \"srv\" is not absolute");
}

#[test]
fn the_pods_files_name_it_and_its_resolver() {
    assert_eq!(hosts_file(&task()), "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.128.0.5\tweb-2\n");
    let network = Network { netns_path: String::new(), dns: "169.254.1.1".into(), search: vec!["shop".into(), "local".into()] };
    assert_eq!(resolv_file(&task(), &network), "nameserver 169.254.1.1\nsearch shop local\noptions ndots:0 timeout:1 attempts:3\n");
    assert_eq!(hostname("web.2"), "web-2");
}

#[test]
fn the_pods_files_hold_what_the_service_says() {
    let mut task = task();
    task.template.dns_search = vec!["corp.example".into()];
    let hosts = [("router", "host-gateway"), ("db", "fd00::7")];
    task.template.extra_hosts = BTreeMap::from(hosts.map(|(name, address)| (name.to_owned(), address.parse().expect("an address"))));
    let network = Network { netns_path: String::new(), dns: "169.254.1.1".into(), search: vec!["shop".into()] };
    let resolv = resolv_file(&task, &network);
    assert_eq!(resolv, "nameserver 169.254.1.1\nsearch corp.example shop\noptions ndots:0 timeout:1 attempts:3\n");
    assert!(hosts_file(&task).ends_with("10.128.0.5\tweb-2\nfd00::7\tdb\n169.254.53.53\trouter\n"));
    assert_eq!(resolv_file(&task, &Network::default()), "# this pod is on no network\n");
}
