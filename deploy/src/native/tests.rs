//! What is accepted, and the exact words of each refusal.

use super::*;

/// The only file that there is: `./key`.
fn no_file(manifest: &str, path: &str) -> Result<Vec<u8>, String> {
    if (manifest, path) == ("web.yaml", "./key") { Ok(b"hunter2".to_vec()) } else { Err("no such file".to_owned()) }
}

fn refuse(text: &str, expected: &str) {
    let errors = parse(&[Source { name: "web.yaml", text }], None, &no_file).expect_err(text);
    let found: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(found.join("\n"), expected, "{text}");
}

fn accept(text: &str) -> Vec<Desired> {
    parse(&[Source { name: "web.yaml", text }], None, &no_file).unwrap_or_else(|errors| panic!("{errors:?}"))
}

const WEB: &str = "kind: Service\nname: web\nspec:\n  replicas: 3\n  containers:\n  - image: web:1\n";

fn only_service(text: &str) -> ServiceSpec {
    match accept(text).remove(0).spec {
        Spec::Service(spec) => spec,
        Spec::Network(_) | Spec::Data(_) => panic!("no service"),
    }
}

#[test]
fn a_service_and_a_network_in_one_file() {
    let desired =
        accept(&format!("kind: Network\nname: lab\nspec: {{}}\n---\n{WEB}  networks: [lab, {{network: back, aliases: [w]}}]\n---\n"));
    assert_eq!(
        desired.iter().map(|object| (object.kind(), object.spec.name())).collect::<Vec<_>>(),
        [(Kind::Network, "lab"), (Kind::Service, "web")]
    );
    assert_eq!(desired[1].origin.to_string(), "web.yaml:5:1");
    let spec = only_service(WEB);
    assert_eq!((spec.replicas, spec.containers[0].name.as_str()), (Some(3), "web"));
}

#[test]
fn numbers_are_text_where_text_is_wanted_as_they_are_written() {
    let spec =
        only_service(&format!("{WEB}    args: [--port, 8080, 1.10, true, \"x\"]\n    env: {{A: 0x10, B: yes, C: '${{HOME:-x}}'}}\n"));
    assert_eq!(spec.containers[0].args, ["--port", "8080", "1.10", "true", "x"]);
    assert_eq!(spec.containers[0].env.values().collect::<Vec<_>>(), ["0x10", "yes", "${HOME:-x}"]);
}

#[test]
fn amounts_in_every_form() {
    let spec = only_service(&format!(
        "{WEB}    resources: {{limits: {{cpus: 0.5, memory: 64MiB, pids: 10}}, reservations: {{memory: 1048576}}}}\n  stop_grace: 1m30s\n"
    ));
    let resources = spec.containers[0].resources;
    assert_eq!(resources.limits.cpus.unwrap().0, 500);
    assert_eq!((resources.limits.memory.unwrap().0, resources.reservations.memory.unwrap().0), (64 << 20, 1 << 20));
    assert_eq!(spec.stop_grace.0, 90_000);
}

#[test]
fn ports_are_read_in_both_forms_and_refused_with_their_place() {
    let on_lab = format!("{WEB}  networks: [lab]\n  leave: 0s\n  ports:\n");
    let spec = only_service(&format!(
        "{on_lab}  - 8080:80\n  - {{name: dns, target: 53, protocol: udp}}\n  - target: 90-92\n    published: 190-192\n    mode: host\n"
    ));
    let expected = serde_json::json!(["8080:80", {"name": "dns", "target": 53, "protocol": "udp"},
        {"target": "90-92", "published": "190-192", "protocol": "tcp", "mode": "host"}]);
    assert_eq!((serde_json::to_value(&spec.ports).unwrap(), spec.leave.0), (expected, 0));
    for (port, expected) in [
        ("80", "80 says no published port; write 80:80, or {name: http, target: 80} for a name in DNS alone"),
        ("8000-8002:80-81", "8000-8002 are 3 ports and 80-81 are 2 ports"),
        ("70000:80", "\"70000\" is not a port: write a number from 1 to 65535"),
        ("{target: 80, published: 80, mode: host, policy: local}", "policy belongs to mode: ingress: remove it"),
    ] {
        refuse(&format!("{on_lab}  - {port}\n"), &format!("web.yaml:10:5: spec.ports[0] of service web: {expected}"));
    }
}

fn policy(text: &str) -> serde_json::Value {
    match accept(&format!("kind: Network\nname: lab\nspec:\n  policy:{text}\n")).remove(0).spec {
        Spec::Network(spec) => serde_json::to_value(spec.policy).unwrap(),
        Spec::Service(_) | Spec::Data(_) => panic!("no network"),
    }
}

#[test]
fn a_policy_is_read_and_refused_with_its_place() {
    let rule = "\n    allow:\n    - from: [web, \"*\", 192.0.2.0/24]\n      to: [db]\n      ports: [5432, 53/udp, 8000-8009]";
    let expected = serde_json::json!({"from": ["web", "*", "192.0.2.0/24"], "to": ["db"], "ports": [5432, "53/udp", "8000-8009"]});
    assert_eq!(policy(rule), serde_json::json!({"allow": [expected]}));
    assert_eq!(policy(" {}"), serde_json::json!({"allow": []}), "nobody may speak");
    assert_eq!(policy(""), serde_json::json!(null), "all may speak");
    for (rule, expected) in [
        ("from: [web]", "6:7: key \"to\" is missing in spec.policy.allow[0] of network lab"),
        ("form: [web]", "6:7: unknown key \"form\" in spec.policy.allow[0] of network lab; did you mean \"from\"?"),
        (
            "from: [10.0.0/8]\n      to: [db]",
            "6:14: spec.policy.allow[0].from[0] of network lab: \"10.0.0/8\" is no CIDR: write one such as 192.0.2.0/24",
        ),
        (
            "from: [web]\n      to: [10.0.0.0/8]",
            "7:12: spec.policy.allow[0].to[0] of network lab: 10.0.0.0/8 is a range of addresses, and only services are spoken to; write a \
             service's name, or \"*\" for all",
        ),
        (
            "from: [web]\n      to: [db]\n      ports: [0]",
            "8:15: spec.policy.allow[0].ports[0] of network lab: \"0\" is not a port: write a number from 1 to 65535",
        ),
    ] {
        refuse(&format!("kind: Network\nname: lab\nspec:\n  policy:\n    allow:\n    - {rule}\n"), &format!("web.yaml:{expected}"));
    }
}

#[test]
fn keys_that_networks_have_elsewhere_are_refused_with_what_is_instead() {
    for (key, expected) in [
        ("driver: weave", "4:11: driver \"weave\" of network lab is not known; there is overlay (leave the key out)"),
        ("driver: overlay", "4:11: driver of network lab: every network is an overlay; leave the key out"),
        ("driver: [a]", "4:11: driver of network lab takes one word; leave the key out"),
        ("attachable: true", "4:3: key \"attachable\" in spec of network lab: only services' tasks are on networks; leave the key out"),
        ("driver_opts: {encrypted: ''}", "4:3: key \"driver_opts\" in spec of network lab: an overlay has no options; leave the key out"),
        (
            "ipam: {config: [{subnet: 10.0.0.0/24}]}",
            "4:3: key \"ipam\" in spec of network lab: the managers give out the addresses of a subnet; write subnet: CIDR, or leave the key \
             out and one is chosen",
        ),
    ] {
        refuse(&format!("kind: Network\nname: lab\nspec:\n  {key}\n"), &format!("web.yaml:{expected}"));
    }
}

#[test]
fn how_names_are_resolved_is_read_and_refused_with_its_place() {
    let on_lab = format!("{WEB}  networks: [lab]\n");
    let spec = only_service(&format!(
        "{on_lab}  dns: [9.9.9.9]\n  dns_search: [corp.example]\n  extra_hosts: {{db: 10.0.0.7, up: host-gateway}}\n"
    ));
    let read = serde_json::json!([spec.dns, spec.dns_search, spec.extra_hosts]);
    assert_eq!(read, serde_json::json!([["9.9.9.9"], ["corp.example"], {"db": "10.0.0.7", "up": "host-gateway"}]));
    refuse(&format!("{on_lab}  dns: [x]\n"), "web.yaml:8:9: spec.dns[0] of service web: \"x\" is no address of a resolver");
    refuse(
        &format!("{on_lab}  extra_hosts: {{db: x}}\n"),
        "web.yaml:8:21: spec.extra_hosts.db of service web: \"x\" is no address: write an IP, or host-gateway",
    );
}

#[test]
fn anchors_and_merge_keys_are_applied() {
    let text = "kind: Service\nname: web\nspec:\n  containers:\n  - &base\n    image: a:1\n    env: {A: b}\n  - <<: *base\n    name: side\n    image: b:1\n";
    let spec = only_service(text);
    assert_eq!(spec.containers[1].image, "b:1");
    assert_eq!(spec.containers[1].env, spec.containers[0].env);
}

#[test]
fn unknown_keys_name_the_nearest() {
    refuse(&WEB.replace("replicas", "replcas"), "web.yaml:4:3: unknown key \"replcas\" in spec of service web; did you mean \"replicas\"?");
    refuse(
        &format!("{WEB}    resources:\n      limits: {{memroy: 1MiB}}\n"),
        "web.yaml:8:16: unknown key \"memroy\" in spec.containers[0].resources.limits of service web; did you mean \"memory\"?",
    );
    refuse(
        &format!("{WEB}  networks:\n  - network: lab\n    alias: [w]\n"),
        "web.yaml:9:5: unknown key \"alias\" in spec.networks[0] of service web; did you mean \"aliases\"?",
    );
    refuse(
        &format!("{WEB}  zebra: 1\n"),
        "web.yaml:7:3: unknown key \"zebra\" in spec of service web; there are stack, labels, mode, replicas, containers, networks, placement, \
         stop_grace, restart, reschedule, update, runtime, endpoint_mode, affinity, ports, leave, dns, dns_search, extra_hosts",
    );
    refuse(&format!("{WEB}sepc: 1\n"), "web.yaml:7:1: unknown key \"sepc\" at the top of service web; did you mean \"spec\"?");
    refuse(&format!("{WEB}replicas: 4\n"), "web.yaml:7:1: key \"replicas\" does not belong at the top of service web; move it under spec:");
    refuse("knid: Service\n", "web.yaml:1:1: unknown key \"knid\"; did you mean \"kind\"?");
}

#[test]
fn wrong_types_and_words_say_what_is_wanted() {
    refuse(
        &WEB.replace(": 3", ": three"),
        "web.yaml:4:13: spec.replicas of service web: a whole number, 0 or more is wanted, not the text \"three\"",
    );
    refuse(
        &WEB.replace(": 3", ": -1"),
        "web.yaml:4:13: spec.replicas of service web: a whole number, 0 or more is wanted, not the number -1",
    );
    refuse(
        &format!("{WEB}    command: /bin/true\n"),
        "web.yaml:7:14: spec.containers[0].command of service web: a list is wanted, not the text \"/bin/true\"",
    );
    refuse(
        &format!("{WEB}    read_only: yes\n"),
        "web.yaml:7:16: spec.containers[0].read_only of service web: true or false is wanted, not the text \"yes\"",
    );
    refuse(
        &format!("{WEB}  reschedule: on_node_failure\n"),
        "web.yaml:7:15: spec.reschedule of service web: \"on_node_failure\" is not known; did you mean \"on-node-failure\"?",
    );
    refuse(
        &format!("{WEB}  stop_grace: 10\n"),
        "web.yaml:7:15: spec.stop_grace of service web: \"10\" is not a time span: write it like 500ms, 10s, 1m30s, 2h or 90d",
    );
    refuse(
        &format!("{WEB}  placement:\n    constraints:\n    - node.labels.zone=b\n"),
        "web.yaml:9:7: spec.placement.constraints[0] of service web: \"node.labels.zone=b\" is not a constraint: write KEY==VALUE or KEY!=VALUE, such as node.labels.zone==b",
    );
    refuse("kind: Network\nname: lab\nspec: {subnet: 10.1/24}\n", "web.yaml:3:16: spec.subnet of network lab: invalid IP address syntax");
    refuse(&format!("{WEB}  labels:\n"), "web.yaml:7:9: spec.labels of service web: a mapping of keys to values is wanted, not nothing");
}

#[test]
fn missing_keys_are_named() {
    refuse("kind: Service\nname: web\n", "web.yaml:1:1: key \"spec\" is missing in service web");
    let network = parse(&[Source { name: "web.yaml", text: "kind: Network\nname: lab\n" }], None, &no_file).unwrap();
    assert_eq!(network[0].spec.name(), "lab", "everything of a network has a default");
    refuse("kind: Service\nspec: {}\n", "web.yaml:1:1: key \"name\" is missing");
    refuse("name: web\n", "web.yaml:1:1: key \"kind\" is missing; write kind: Service, Network, Secret or Config");
    refuse(
        "kind: Service\nname: web\nspec:\n  containers:\n  - args: [x]\n",
        "web.yaml:5:5: key \"image\" is missing in spec.containers[0] of service web",
    );
}

#[test]
fn what_is_not_built_yet_is_refused_by_name() {
    refuse("kind: Job\nname: x\nspec: {}\n", "web.yaml:1:7: kind Job is not built yet; there are Service, Network, Secret and Config");
    refuse("kind: service\nname: x\nspec: {}\n", "web.yaml:1:7: unknown kind \"service\"; did you mean \"Service\"?");
    refuse(&format!("{WEB}  mode: cron\n"), "web.yaml:7:9: mode cron of service web is not built yet; there are replicated and global");
    refuse(&format!("{WEB}  volumes: [a]\n"), "web.yaml:7:3: key \"volumes\" in spec of service web is not built yet; remove it");
    refuse(
        "version: '3'\nservices:\n  web: {image: a}\n",
        "web.yaml:2:1: this is a Compose file, and those are not built yet; write native documents with kind: Service, as in examples/web.yaml",
    );
}

#[test]
fn what_a_check_refuses_has_its_place() {
    refuse(
        &WEB.replace("name: web", "name: Web_1"),
        "web.yaml:2:7: name of service Web_1: service name \"Web_1\" holds a character that a host name cannot have; use 1 to 63 lower-case \
         letters, digits and -, beginning and ending with a letter or digit, such as web-1",
    );
    refuse(
        &format!("{WEB}  mode: global\n"),
        "web.yaml:4:13: spec.replicas of service web: a global service runs one task on each node and has no replicas; remove replicas, or set mode: replicated",
    );
    refuse(
        &format!("{WEB}    resources:\n      limits:\n        memory: 1KiB\n"),
        "web.yaml:9:17: spec.containers[0].resources.limits.memory of service web: 1KiB is too little to start a process: at least 1MiB",
    );
    refuse(&format!("{WEB}  networks: [a, a]\n"), "web.yaml:7:17: spec.networks[1] of service web: network a is named twice");
    refuse(
        "kind: Network\nname: lab\nspec:\n  subnet: 10.1.2.3/24\n",
        "web.yaml:4:11: spec.subnet of network lab: 10.1.2.3/24 has host bits set; write 10.1.2.0/24",
    );
    refuse(
        "kind: Network\nname: lab\nspec:\n  subnet6: fd00:1::/64\n",
        "web.yaml:4:12: spec.subnet6 of network lab: fd00:1::/64 is for IPv6, which the network does not have; add ipv6: true, or leave it out",
    );
    refuse(
        "kind: Network\nname: lab\nspec:\n  subnet: fd00:1::/64\n",
        "web.yaml:4:11: spec.subnet of network lab: invalid IP address syntax",
    );
}

#[test]
fn an_object_is_described_once() {
    let sources = [Source { name: "a.yaml", text: WEB }, Source { name: "b.yaml", text: &format!("---\n{WEB}") }];
    let errors = parse(&sources, None, &no_file).unwrap_err();
    assert_eq!(errors[0].to_string(), "b.yaml:2:1: service web is already described in a.yaml:1:1; keep one of them");
}

#[test]
fn every_document_is_checked_and_every_refusal_told() {
    refuse(
        "kind: Service\nname: a\n---\nkind: Box\nname: b\n",
        "web.yaml:1:1: key \"spec\" is missing in service a\nweb.yaml:4:7: unknown kind \"Box\"; there are Service, Network, Secret, Config",
    );
    refuse("a: [1\nb: }", "web.yaml:2:2: not YAML: illegal placement of ':' indicator");
    refuse("just text", "web.yaml:1:1: a manifest is a mapping with the keys kind, name and spec; see examples/web.yaml");
}

#[test]
fn what_get_prints_is_accepted_and_conditional() {
    let printed = format!(
        "{WEB}  mode: replicated\nid: 0123\nversion: 17\nmode: replicated\nreplicas: {{desired: 3, running: 3}}\nupdate: {{state: completed, \
         message: ''}}\ncreated: x\nupdated: y\n"
    );
    assert_eq!(accept(&printed)[0].expected_version, 17);
    refuse(
        &printed.replace("\nmode: replicated", "\nmode: global"),
        "web.yaml:10:7: mode at the top of service web is what the managers say, and differs from spec.mode; change spec.mode alone",
    );
    refuse(
        &printed.replace("version: 17", "version: x"),
        "web.yaml:9:10: version of service web: a whole number, 0 or more is wanted, not the text \"x\"",
    );
}

#[test]
fn a_stack_is_put_on_every_object_or_refused() {
    let source = [Source { name: "f", text: WEB }];
    let Spec::Service(spec) = &parse(&source, Some("shop"), &no_file).unwrap()[0].spec else { panic!("a network") };
    assert_eq!(spec.stack, "shop");
    let text = format!("{WEB}  stack: other\n");
    let errors = parse(&[Source { name: "f", text: &text }], Some("shop"), &no_file).unwrap_err();
    assert_eq!(errors[0].to_string(), "f:7:10: spec.stack of service web is \"other\", and --stack says \"shop\"; remove one of them");
}

#[test]
fn a_secrets_bytes_come_as_base64_as_text_or_from_a_file_beside_the_manifest() {
    for spec in ["data: aHVudGVyMg==", "text: hunter2", "file: ./key"] {
        let Spec::Data(secret) = accept(&format!("kind: Secret\nname: db\nspec: {{{spec}}}\n")).remove(0).spec else { panic!("no secret") };
        assert_eq!((secret.kind, secret.data.unwrap().0), (DataKind::Secret, b"hunter2".to_vec()), "{spec}");
    }
    let refuse = |spec: &str, expected: &str| refuse(&format!("kind: Config\nname: db\nspec:\n  {spec}\n"), expected);
    refuse("file: ../k", "web.yaml:4:9: spec.file of config db: ../k: no such file; the path is relative to the manifest");
    refuse("data: YQ==\n  text: a", "web.yaml:5:9: data and text of config db are both given; keep one");
    refuse("dat: YQ==", "web.yaml:4:3: unknown key \"dat\" in spec of config db; did you mean \"data\"?");
    refuse(
        "data: hunter2!",
        "web.yaml:4:3: spec.data of config db: not base64 (RFC 4648 §4): in a manifest, plain text goes under text and a file's path under file",
    );
    refuse("text: [hunter2]", "web.yaml:4:9: spec.text of config db takes text");
    let large = format!("text: {}", "a".repeat(512_001));
    refuse(
        &large,
        "web.yaml:4:3: spec.data of config db: config db has 512001 bytes, more than the limit of 512000; split it, or keep it on a volume or in the image",
    );
}

#[test]
fn what_a_container_uses_is_checked() {
    let refuse = |uses: &str, expected: &str| refuse(&format!("{WEB}    {uses}\n"), expected);
    refuse(
        "secrets: [{source: db, target: ../x}]",
        "web.yaml:7:36: spec.containers[0].secrets[0].target of service web: \"../x\" is not a plain path of a file; write it like /etc/app/key, without . and ..",
    );
    refuse(
        "configs: [a, {source: b, target: a}]",
        "web.yaml:7:38: spec.containers[0].configs[1].target of service web: something else has the target /a already",
    );
    refuse(
        "secrets: [{source: db, mode: rw}]",
        "web.yaml:7:15: spec.containers[0].secrets[0].mode of service web: \"rw\" is not a file mode: write it in octal and in quotes, such as \"0755\"",
    );
}
