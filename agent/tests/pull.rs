//! Pulling from registries: Debian's docker-registry with images pushed by skopeo, and servers that misbehave. Needs root.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use rcluster_agent::core::reference::Reference;
use rcluster_agent::image::pull::{Progress, Puller};
use rcluster_agent::image::registry::transport::Patience;
use rcluster_agent::image::registry::{Access, Client};
use rcluster_agent::image::{ImageError, Store};
use rcluster_api::container::PullPolicy;
use serde_json::{Value, json};
use support::image::{Layout, dir, file, hex, layer};
use support::registry::{Asked, Fake, How, Real, Reply, Setup, Shelf, certificates, reply};
use tokio::sync::watch;
use tokio::time::timeout;

/// No pull here may take longer.
const DEADLINE: Duration = Duration::from_secs(60);
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("state")).expect("a store");
        Self { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A layout with the image `1` of gzipped layers.
    fn layout(&self, layers: &[Vec<u8>]) -> PathBuf {
        let path = self.path("layout");
        self.add(&path, "1", layers);
        path
    }

    fn add(&self, path: &Path, tag: &str, layers: &[Vec<u8>]) {
        let packed: Vec<(Vec<u8>, &str)> = layers.iter().map(|layer| (gzip(layer), GZIP)).collect();
        Layout::new(path).image_packed(tag, &json!({"Cmd": ["/x"]}), layers, &packed);
    }

    fn puller(&self, access: Access) -> Puller {
        Puller::new(self.store.clone(), Client::new(access).expect("a client"))
    }

    fn layers(&self, name: &str) -> Vec<PathBuf> {
        let image = self.store.find(name).expect("it is there");
        self.store.layers(&image).expect("its layers")
    }

    /// What a broken pull may not leave: names, layers, blobs.
    fn kept(&self) -> (usize, usize, usize) {
        let count = |dir: &str, suffix: bool| {
            let entries = fs::read_dir(self.path("state/images").join(dir)).expect("list").flatten();
            entries.filter(|entry| suffix == entry.path().extension().is_none()).count()
        };
        (self.store.list().expect("list").len(), count("layers", true), count("blobs/sha256", true))
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("zip");
    encoder.finish().expect("zip")
}

/// Content that gzip does not shorten much.
fn noise(bytes: usize, seed: u64) -> String {
    let mut state = seed;
    let letters = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + u8::try_from((state >> 33) % 90).expect("small"))
    });
    letters.take(bytes).collect()
}

/// A layer of about this size, packed.
fn big(bytes: usize, seed: u64) -> Vec<u8> {
    layer(&[dir("data"), file("data/noise", &noise(bytes, seed))])
}

fn hasty() -> Patience {
    Patience {
        connect: Duration::from_secs(20),
        answer: Duration::from_secs(20),
        stall: Duration::from_secs(20),
        tries_max: 3,
        backoff_first: Duration::from_millis(5),
        backoff_max: Duration::from_millis(20),
    }
}

fn plain(hosts: &[String]) -> Access {
    Access { plain_http: hosts.iter().cloned().collect(), patience: hasty(), ..Access::default() }
}

/// Plain text with loopback.
fn loopback() -> Access {
    plain(&["127.0.0.1".into()])
}

/// The same with a server that may stand still for so long.
fn stalling(stall: Duration) -> Access {
    Access { patience: Patience { stall, ..hasty() }, ..loopback() }
}

async fn pull(puller: &Puller, name: &str) -> Result<Progress, String> {
    ensure(puller, name, PullPolicy::Missing).await
}

async fn ensure(puller: &Puller, name: &str, policy: PullPolicy) -> Result<Progress, String> {
    let told = watch::Sender::new(Progress::default());
    let done = timeout(DEADLINE, puller.ensure(name, policy, &told)).await.expect("in time");
    done.map_err(words).map(|()| told.borrow().clone())
}

fn words(error: ImageError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn arch() -> &'static str {
    if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }
}

// --- a real registry ---

#[tokio::test(flavor = "multi_thread")]
async fn images_of_every_kind_come_from_a_real_registry_by_tag_and_by_digest() {
    let (bench, real) = (Bench::new(), Real::start(&Setup::default()));
    let layers = [layer(&[file("a", "1")]), big(400_000, 1), layer(&[file("b", "2")])];
    let layout = bench.layout(&layers);
    let puller = bench.puller(loopback());
    for (repository, options) in
        [("oci", &[][..]), ("docker/schema2", &["--format", "v2s2"]), ("zstd", &["--dest-compress-format", "zstd", "--format", "oci"])]
    {
        let name = real.push(&layout, "1", repository, options);
        let progress = pull(&puller, &name).await.unwrap_or_else(|why| panic!("{repository}: {why}"));
        assert_eq!((progress.layers.len(), progress.layers.iter().all(|layer| layer.done)), (3, true), "{repository}");
        let found = bench.layers(&name);
        assert_eq!(fs::read_to_string(found[2].join("b")).expect("read"), "2", "{repository}");
        let image = bench.store.find(&name).expect("it is there");
        assert_eq!(image.config.cmd, ["/x"], "{repository}");
        // By digest, under a name of its own.
        let by_digest = format!("{}@{}", name.rsplit_once(':').expect("a tag").0, image.digest);
        pull(&puller, &by_digest).await.unwrap_or_else(|why| panic!("{repository}: {why}"));
        assert_eq!(bench.store.find(&by_digest).expect("it is there").digest, image.digest, "{repository}");
    }
}

#[test]
fn the_command_line_pulls_with_the_agents_own_threads() {
    let (bench, real) = (Bench::new(), Real::start(&Setup::default()));
    let layers: Vec<Vec<u8>> = (0..6).map(|number| big(300_000, number)).collect();
    let name = real.push(&bench.layout(&layers), "1", "web", &["--dest-compress-format", "zstd", "--format", "oci"]);
    let pull = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rcluster-agent"));
        command.args(["image", "pull", name, "--registry-plain-http", "127.0.0.1", "--state-dir"]).arg(bench.path("state"));
        command.output().expect("run the agent's binary")
    };
    let output = pull(&name);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{name}\t{}\n", bench.store.find(&name).expect("there").digest));
    assert_eq!(bench.layers(&name).len(), 6);
    let output = pull(&format!("{}/none:1", real.addr));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("has no image \"1\" in none"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_asked_for_and_wrong_or_missing_ones_are_told_with_what_to_do() {
    // "secret" for "me".
    let users = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
    let (bench, real) = (Bench::new(), Real::start(&Setup { users: Some(users), tls: None }));
    let layout = bench.layout(&[layer(&[file("a", "1")])]);
    let name = real.push(&layout, "1", "private/web", &["--dest-creds", "me:secret"]);
    let file = bench.path("auth.json");
    let access = || Access { auth_file: Some(file.clone()), ..loopback() };
    let write = |auths: Value| fs::write(&file, json!({"auths": auths}).to_string()).expect("write");
    let host = real.addr.to_string();

    write(json!({}));
    let puller = bench.puller(access());
    let error = pull(&puller, &name).await.expect_err("no credentials");
    let expected = format!("registry {host} does not let this node pull private/web (401): it is private or does not exist; give");
    assert!(error.starts_with(&expected), "{error}");

    write(json!({&host: {"username": "me", "password": "wrong"}}));
    let error = pull(&puller, &name).await.expect_err("wrong credentials");
    assert!(error.contains("the credentials in --registry-auth are not accepted"), "{error}");
    assert!(!error.contains("wrong"), "a password is shown: {error}");

    // The file is read anew, without another client. "me:secret" in base64.
    write(json!({&host: {"auth": "bWU6c2VjcmV0"}}));
    pull(&puller, &name).await.expect("with the right password");

    fs::remove_file(&file).expect("remove");
    let error = ensure(&puller, &name, PullPolicy::Always).await.expect_err("no file");
    assert!(error.contains("credentials file") && error.contains("auth.json"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_needs_a_known_authority_and_says_which_flag_makes_one_known() {
    let bench = Bench::new();
    let (authority, certificate, key) = certificates(bench.dir.path());
    let real = Real::start(&Setup { users: None, tls: Some((certificate, key)) });
    let name = real.push(&bench.layout(&[layer(&[file("a", "1")])]), "1", "web", &[]);
    let patient = || Access { patience: hasty(), ..Access::default() };
    let error = pull(&bench.puller(patient()), &name).await.expect_err("an unknown authority");
    assert!(error.contains("TLS handshake failed") && error.contains("--registry-ca FILE"), "{error}");
    let known = Access { authorities: vec![authority], ..patient() };
    pull(&bench.puller(known), &name).await.expect("with its authority");

    let unreadable = Access { authorities: vec![bench.path("none.pem")], ..patient() };
    assert!(Client::new(unreadable).expect_err("no file").to_string().contains("none.pem"));
    fs::write(bench.path("empty.pem"), "no certificate").expect("write");
    let empty = Access { authorities: vec![bench.path("empty.pem")], ..patient() };
    assert!(Client::new(empty).expect_err("no certificate").to_string().contains("holds no certificate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_and_unreachable_hosts_and_what_is_not_there_are_told() {
    let (bench, real) = (Bench::new(), Real::start(&Setup::default()));
    let name = real.push(&bench.layout(&[layer(&[file("a", "1")])]), "1", "web", &[]);
    let error = pull(&bench.puller(plain(&[])), &name).await.expect_err("plain HTTP is not allowed");
    assert!(error.contains(&format!("--registry-plain-http {}", real.addr)), "{error}");

    let puller = bench.puller(loopback());
    let error = pull(&puller, &format!("{}/web:2", real.addr)).await.expect_err("no such tag");
    assert_eq!(error, format!("registry {} has no image \"2\" in web: check the name and the tag", real.addr));
    let error = pull(&puller, &format!("{}/other/web:1", real.addr)).await.expect_err("no such repository");
    assert!(error.contains("has no image \"1\" in other/web"), "{error}");

    // A port that nobody is given.
    let closed = "127.0.0.1:1";
    let error = pull(&puller, &format!("{closed}/web:1")).await.expect_err("nobody listens");
    assert!(error.starts_with(&format!("registry {closed} cannot be reached")) && error.contains("refused"), "{error}");
    let error = pull(&puller, "Not/A/Name").await.expect_err("no name");
    assert!(error.contains("lower case"), "{error}");
    assert_eq!(bench.kept().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_say_when_a_registry_is_asked() {
    let (bench, real) = (Bench::new(), Real::start(&Setup::default()));
    let (first, second) = (bench.path("first"), bench.path("second"));
    bench.add(&first, "1", &[layer(&[file("a", "1")])]);
    bench.add(&second, "1", &[layer(&[file("a", "2")])]);
    let name = real.push(&first, "1", "web", &[]);
    let puller = bench.puller(loopback());
    let error = ensure(&puller, &name, PullPolicy::Never).await.expect_err("never asked");
    assert!(error.contains("is not on this node"), "{error}");
    ensure(&puller, &name, PullPolicy::Missing).await.expect("it comes");
    let before = bench.store.find(&name).expect("there").digest.to_string();
    real.push(&second, "1", "web", &[]);
    ensure(&puller, &name, PullPolicy::Missing).await.expect("it is there");
    assert_eq!(bench.store.find(&name).expect("there").digest.to_string(), before, "what is there stays");
    ensure(&puller, &name, PullPolicy::Always).await.expect("it comes");
    assert_ne!(bench.store.find(&name).expect("there").digest.to_string(), before, "the tag was moved");
    drop(real);
    ensure(&puller, &name, PullPolicy::Missing).await.expect("it is there");
    ensure(&puller, &name, PullPolicy::Never).await.expect("it is there");
    assert!(ensure(&puller, &name, PullPolicy::Always).await.is_err(), "always asks");
}

// --- servers that misbehave ---

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_the_connection_broke_or_nothing_came_any_more() {
    for how in [How::CutAt(150_000), How::StallAt(150_000)] {
        let bench = Bench::new();
        let shelf = Shelf::of(&bench.layout(&[big(300_000, 1)]));
        let tries = AtomicUsize::new(0);
        let fake = Fake::start(move |asked| match shelf.reply(asked) {
            reply if asked.is_blob() && reply.body.len() > 200_000 && tries.fetch_add(1, Ordering::SeqCst) == 0 => reply.how(how),
            reply => reply,
        });
        let name = fake.name("web:1");
        // More than this machine stands still.
        let access = stalling(Duration::from_secs(3));
        pull(&bench.puller(access), &name).await.unwrap_or_else(|why| panic!("{how:?}: {why}"));
        let ranges: Vec<_> = fake.blobs_asked().iter().filter_map(Asked::range_from).collect();
        assert_eq!(ranges, [150_000], "{how:?}");
        assert_eq!(bench.layers(&name).len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_sends_all_again_and_no_byte_counts_twice() {
    let bench = Bench::new();
    let shelf = Shelf::of(&bench.layout(&[big(300_000, 1)]));
    let tries = AtomicUsize::new(0);
    let fake = Fake::start(move |asked| {
        let mut without = asked.clone();
        without.headers.remove("range");
        match shelf.reply(&without) {
            reply if reply.body.len() > 200_000 && tries.fetch_add(1, Ordering::SeqCst) < 2 => reply.how(How::CutAt(100_000)),
            reply => reply,
        }
    });
    pull(&bench.puller(loopback()), &fake.name("web:1")).await.expect("it comes");
    assert_eq!(tries_of_layer(&fake), 3);
}

/// Requests for the one layer: what is asked for most.
fn tries_of_layer(fake: &Fake) -> usize {
    let asked = fake.blobs_asked();
    asked.iter().map(|one| asked.iter().filter(|other| other.path == one.path).count()).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_never_get_better_are_given_up_with_their_words() {
    type Spoil = fn(Reply) -> Reply;
    let cases: [(&str, Spoil); 7] = [
        ("answered 503 Service Unavailable while asking for a layer (BUSY later)", |_| {
            reply(503, r#"{"errors":[{"code":"BUSY","message":"later"}]}"#)
        }),
        ("stalled for 1s while reading a layer", |reply| reply.how(How::StallAt(0))),
        ("stalled for 1s while reading a layer", |reply| reply.how(How::Drip)),
        ("the connection broke while reading a layer", |reply| reply.how(How::CutAt(10))),
        ("its manifest says", |reply| Reply { body: [reply.body, b"more".to_vec()].concat(), ..reply }),
        ("its content has another digest", |mut reply| {
            let middle = reply.body.len() / 2;
            reply.body[middle] ^= 1;
            reply
        }),
        ("sends on to http://192.0.2.1/blob, in plain text: allow it with --registry-plain-http 192.0.2.1", |_| {
            reply(307, "").with("location", "http://192.0.2.1/blob")
        }),
    ];
    for (expected, spoil) in cases {
        let bench = Bench::new();
        let shelf = Shelf::of(&bench.layout(&[big(300_000, 1)]));
        let fake = Fake::start(move |asked| {
            let whole = Asked { headers: BTreeMap::new(), ..asked.clone() };
            match shelf.reply(asked) {
                reply if asked.is_blob() && shelf.reply(&whole).body.len() > 200_000 => spoil(reply),
                reply => reply,
            }
        });
        let stall = Duration::from_secs(if expected.starts_with("stalled") { 1 } else { 20 });
        let error = pull(&bench.puller(stalling(stall)), &fake.name("web:1")).await.expect_err(expected);
        assert!(error.contains(expected) && error.contains(&format!("registry {}", fake.addr)), "{error}");
        assert!(tries_of_layer(&fake) <= 4, "{expected}: {} tries", tries_of_layer(&fake));
        assert_eq!(bench.kept(), (0, 0, 0), "{expected}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_recovers_is_tried_again_and_its_wish_to_wait_is_granted() {
    let bench = Bench::new();
    let shelf = Shelf::of(&bench.layout(&[layer(&[file("a", "1")])]));
    let left = AtomicUsize::new(2);
    let fake = Fake::start(move |asked| match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
        Ok(2) => reply(500, ""),
        Ok(_) => reply(429, "").with("retry-after", "0"),
        Err(_) => shelf.reply(asked),
    });
    pull(&bench.puller(loopback()), &fake.name("web:1")).await.expect("it comes");
    assert_eq!(fake.asked().iter().filter(|asked| asked.path.contains("/manifests/")).count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_are_none_are_refused_with_the_reason() {
    let bench = Bench::new();
    let layout = bench.layout(&[layer(&[file("a", "1")])]);
    let mut shelf = Shelf::of(&layout);
    let manifest = shelf.manifest("1");
    let index = |platforms: &[(&str, &str)]| {
        let digest = format!("sha256:{}", hex(b"other"));
        let entries: Vec<Value> = platforms
            .iter()
            .map(|(os, arch)| json!({"mediaType": manifest["mediaType"], "digest": digest, "size": 1, "platform": {"os": os, "architecture": arch}}))
            .collect();
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries})
    };
    let mut swapped = manifest.clone();
    swapped["layers"] = json!([]);
    let mut huge = manifest.clone();
    huge["config"]["size"] = json!(1_u64 << 40);
    for (tag, document, expected) in [
        ("text", b"hello".to_vec(), "expected value"),
        ("one", json!({"schemaVersion": 1, "fsLayers": []}).to_string().into(), "schema 1, which is withdrawn"),
        ("odd", json!({"schemaVersion": 2, "mediaType": "application/x-odd"}).to_string().into(), "media type \"application/x-odd\""),
        ("big", vec![b' '; 5 << 20], "more than 4194304 bytes"),
        ("arch", index(&[("linux", "s390x"), ("windows", "amd64")]).to_string().into(), "it is for: linux/s390x, windows/amd64"),
        ("gone", index(&[("linux", arch())]).to_string().into(), "has no image"),
        ("layers", swapped.to_string().into(), "its manifest names 0 layers and its configuration 1"),
        ("config", huge.to_string().into(), "more than a document of an image may have"),
    ] {
        shelf.tag(tag, document);
        let shelf = Shelf::clone(&shelf);
        let fake = Fake::start(move |asked| shelf.reply(asked));
        let error = pull(&bench.puller(loopback()), &fake.name(&format!("web:{tag}"))).await.expect_err(expected);
        assert!(error.contains(expected), "{tag}: {error}");
    }
    assert_eq!(bench.kept(), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_gives_the_image_for_this_host_and_an_image_for_another_is_refused() {
    let bench = Bench::new();
    let layout = bench.layout(&[layer(&[file("a", "1")])]);
    let mut shelf = Shelf::of(&layout);
    let own = shelf.digest("1").to_owned();
    let mut foreign_config: Value = {
        let digest = shelf.manifest("1")["config"]["digest"].as_str().expect("text").to_owned();
        serde_json::from_slice(shelf.blob(&digest)).expect("json")
    };
    foreign_config["architecture"] = json!("s390x");
    let foreign_config = foreign_config.to_string().into_bytes();
    let mut foreign = shelf.manifest("1");
    foreign["config"]["digest"] = json!(format!("sha256:{}", hex(&foreign_config)));
    foreign["config"]["size"] = json!(foreign_config.len());
    shelf.put(&format!("sha256:{}", hex(&foreign_config)), foreign_config);
    shelf.tag("foreign", foreign.to_string().into());
    let entry = |digest: &str, arch: &str| {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        json!({"mediaType": kind, "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": arch}})
    };
    let entries = [entry(shelf.digest("foreign"), "s390x"), entry(&own, arch())];
    let kind = "application/vnd.docker.distribution.manifest.list.v2+json";
    shelf.tag("all", json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).to_string().into());
    let index_digest = shelf.digest("all").to_owned();
    let fake = Fake::start(move |asked| shelf.reply(asked));
    let puller = bench.puller(loopback());
    for name in [fake.name("web:all"), fake.name(&format!("web@{index_digest}"))] {
        pull(&puller, &name).await.expect("it comes");
        assert_eq!(bench.store.find(&name).expect("there").digest.to_string(), own);
    }
    let error = pull(&puller, &fake.name("web:foreign")).await.expect_err("another platform");
    assert!(error.contains(&format!("it is for linux/s390x and this node is linux/{}", arch())), "{error}");
}

// --- who we are, and who may know ---

/// Answers only with the token, which a token service of the same server gives.
fn guarded(shelf: Shelf, served: impl Fn(usize) -> bool + Send + Sync + 'static) -> Fake {
    let (addr, given) = (Arc::new(std::sync::OnceLock::<String>::new()), AtomicUsize::new(0));
    let known = Arc::clone(&addr);
    let answered = AtomicUsize::new(0);
    let fake = Fake::start(move |asked| {
        let host = known.get().cloned().unwrap_or_default();
        if asked.path.starts_with("/token") {
            let number = given.fetch_add(1, Ordering::SeqCst);
            return reply(200, json!({"token": format!("t{number}"), "expires_in": 60}).to_string());
        }
        let latest = format!("Bearer t{}", given.load(Ordering::SeqCst).wrapping_sub(1));
        if asked.header("authorization") == Some(&latest) && served(answered.fetch_add(1, Ordering::SeqCst)) {
            return shelf.reply(asked);
        }
        let challenge = format!("Bearer realm=\"http://{host}/token?account=x\",service=\"the registry\"");
        reply(401, "").with("www-authenticate", challenge)
    });
    addr.set(fake.addr.to_string()).expect("once");
    fake
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_bought_with_the_credentials_and_another_when_it_runs_out() {
    let bench = Bench::new();
    let layout = bench.layout(&[layer(&[file("a", "1")])]);
    // The second answer is refused: its token has run out.
    let fake = guarded(Shelf::of(&layout), |answered| answered != 1);
    fs::write(bench.path("auth"), json!({"auths": {fake.addr.to_string(): {"username": "me", "password": "secret"}}}).to_string())
        .expect("write");
    let access = Access { auth_file: Some(bench.path("auth")), ..loopback() };
    pull(&bench.puller(access), &fake.name("team/web:1")).await.expect("it comes");
    let asked = fake.asked();
    let tokens: Vec<_> = asked.iter().filter(|asked| asked.path.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 2);
    assert_eq!(tokens[0].path, "/token?account=x&scope=repository:team/web:pull&service=the%20registry");
    // "me:secret" goes to the token service only.
    assert!(tokens.iter().all(|asked| asked.header("authorization") == Some("Basic bWU6c2VjcmV0")));
    let others = asked.iter().filter(|asked| !asked.path.starts_with("/token"));
    assert!(others.into_iter().all(|asked| asked.header("authorization").is_none_or(|value| value.starts_with("Bearer t"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_buys_tokens_and_without_credentials_one_is_asked_for_all_the_same() {
    let bench = Bench::new();
    let fake = guarded(Shelf::of(&bench.layout(&[layer(&[file("a", "1")])])), |_| true);
    pull(&bench.puller(loopback()), &fake.name("web:1")).await.expect("anonymous");
    let anonymous = fake.asked().into_iter().find(|asked| asked.path.starts_with("/token")).expect("a token");
    assert_eq!((anonymous.method.as_str(), anonymous.header("authorization")), ("GET", None));

    fs::write(bench.path("auth"), json!({"auths": {fake.addr.to_string(): {"identitytoken": "i&t"}}}).to_string()).expect("write");
    let access = Access { auth_file: Some(bench.path("auth")), ..loopback() };
    ensure(&bench.puller(access), &fake.name("web:1"), PullPolicy::Always).await.expect("with an identity token");
    let bought = fake.asked().into_iter().rfind(|asked| asked.path.starts_with("/token")).expect("a token");
    assert_eq!(bought.method, "POST");
    assert!(bought.body.starts_with("grant_type=refresh_token&client_id=rcluster-agent&refresh_token=i%26t&scope="), "{}", bought.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_followed_and_the_token_stays_at_home() {
    let bench = Bench::new();
    let layout = bench.layout(&[big(300_000, 1)]);
    let (shelf, elsewhere) = (Shelf::of(&layout), Shelf::of(&layout));
    let elsewhere = Fake::start(move |asked| elsewhere.reply(asked));
    let to = elsewhere.addr;
    let served = guarded(shelf, |_| true);
    let home = served.addr;
    // In front of the guarded registry: sends blobs elsewhere, all else to it.
    let front = Fake::start(move |asked| {
        if asked.is_blob() && asked.header("authorization").is_some() {
            reply(307, "").with("location", format!("http://{to}{}", asked.path))
        } else if asked.header("authorization").is_none() {
            reply(401, "").with("www-authenticate", format!("Bearer realm=\"http://{home}/token\",service=s"))
        } else {
            reply(307, "").with("location", format!("http://{to}{}", asked.path))
        }
    });
    let name = front.name("web:1");
    pull(&bench.puller(loopback()), &name).await.expect("it comes");
    assert!(!elsewhere.blobs_asked().is_empty());
    assert!(elsewhere.asked().iter().all(|asked| asked.header("authorization").is_none()), "the token went elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_in_a_circle_end() {
    let bench = Bench::new();
    let fake = Fake::start(|asked| reply(302, "").with("location", asked.path.clone()));
    let error = pull(&bench.puller(loopback()), &fake.name("web:1")).await.expect_err("a circle");
    assert!(error.contains("redirects: more than 5"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_their_failures_cost_nothing_but_time() {
    let bench = Bench::new();
    let layout = bench.layout(&[big(300_000, 1)]);
    let (first, second, third) = (Shelf::of(&layout), Shelf::of(&layout), Shelf::of(&layout));
    let good = Fake::start(move |asked| first.reply(&Asked { path: asked.path.replacen("/v2/cache/", "/v2/", 1), ..asked.clone() }));
    let bad = Fake::start(|_| reply(500, ""));
    // Has the manifest, but its layer is damaged.
    let liar = Fake::start(move |asked| match second.reply(asked) {
        mut reply if reply.body.len() > 200_000 => {
            reply.body[100_000] ^= 1;
            reply
        }
        reply => reply,
    });
    let origin = Fake::start(move |asked| third.reply(asked));
    let access = |mirrors: &[String]| Access { mirrors: [(origin.addr.to_string(), mirrors.to_vec())].into(), ..loopback() };

    pull(&bench.puller(access(&[bad.addr.to_string(), format!("{}/cache", good.addr)])), &origin.name("web:1"))
        .await
        .expect("by the mirror");
    assert_eq!((origin.asked().len(), good.asked().len()), (0, 3));
    assert!(bench.store.find(&origin.name("web:1")).is_ok(), "the name is the origin's");

    let other = Bench::new();
    pull(&other.puller(access(&[liar.addr.to_string()])), &origin.name("web:1")).await.expect("by the origin");
    assert_eq!(origin.blobs_asked().len(), 1, "only what the mirror had wrong");
}

// --- many at once ---

#[tokio::test(flavor = "multi_thread")]
async fn what_many_want_at_once_is_fetched_once() {
    let bench = Bench::new();
    let layout = bench.path("layout");
    let shared = big(300_000, 1);
    let mut names = BTreeSet::new();
    let mut made = Layout::new(&layout);
    for number in 0..4 {
        let layers = [shared.clone(), layer(&[file("own", &number.to_string())])];
        let packed: Vec<(Vec<u8>, &str)> = layers.iter().map(|layer| (gzip(layer), GZIP)).collect();
        made.image_packed(&number.to_string(), &json!({}), &layers, &packed);
        names.insert(number);
    }
    let shelf = Shelf::of(&layout);
    let fake = Fake::start(move |asked| shelf.reply(asked));
    let puller = bench.puller(loopback());
    // Each image is wanted by three.
    let pulls = names.iter().flat_map(|number| std::iter::repeat_n(fake.name(&format!("web:{number}")), 3));
    let pulls: Vec<_> = pulls
        .map(|name| {
            let puller = puller.clone();
            tokio::spawn(async move { pull(&puller, &name).await })
        })
        .collect();
    for done in pulls {
        done.await.expect("no panic").expect("it comes");
    }
    let mut paths: Vec<String> = fake.blobs_asked().into_iter().map(|asked| asked.path).collect();
    let count = paths.len();
    paths.sort();
    paths.dedup();
    // Four configurations, four layers of their own, the shared one.
    assert_eq!((count, paths.len()), (9, 9));
    assert_eq!(bench.kept().0, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_given_up_ends_and_the_next_goes_on_where_it_was() {
    let bench = Bench::new();
    let shelf = Shelf::of(&bench.layout(&[big(300_000, 1)]));
    let tries = AtomicUsize::new(0);
    let fake = Fake::start(move |asked| match shelf.reply(asked) {
        reply if reply.body.len() > 200_000 && tries.fetch_add(1, Ordering::SeqCst) == 0 => reply.how(How::StallAt(120_000)),
        reply => reply,
    });
    let name = fake.name("web:1");
    let patient = Access { patience: Patience::default(), ..loopback() };
    let puller = bench.puller(patient);
    let told = watch::Sender::new(Progress::default());
    let mut seen = told.subscribe();
    {
        let reference = Reference::parse(&name).expect("a name");
        let pull = puller.pull(&reference, &told);
        let arrived = seen.wait_for(|progress| progress.layers.first().is_some_and(|layer| layer.bytes >= 120_000));
        tokio::select! {
            done = pull => panic!("it ended: {done:?}"),
            arrived = timeout(DEADLINE, arrived) => drop(arrived.expect("in time").expect("a sender")),
        }
    }
    assert!(seen.borrow().to_string().starts_with("pulling 0/1 layers, 0.1/0."), "{}", *seen.borrow());
    pull(&puller, &name).await.expect("it comes");
    let ranges: Vec<_> = fake.blobs_asked().iter().filter_map(Asked::range_from).collect();
    assert_eq!(ranges, [120_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_try_left_is_not_trusted() {
    let bench = Bench::new();
    let shelf = Shelf::of(&bench.layout(&[big(300_000, 1)]));
    let digest = shelf.manifest("1")["layers"][0]["digest"].as_str().expect("text").trim_start_matches("sha256:").to_owned();
    let partial = bench.path("state/images/partial").join(&digest);
    let fake = Fake::start(move |asked| shelf.reply(asked));
    for (left, tries) in [(vec![b'x'; 1000], 2), (vec![b'x'; 10 << 20], 1)] {
        let other = Bench::new();
        let partial = other.path("state/images/partial").join(partial.file_name().expect("a name"));
        fs::write(&partial, left).expect("write");
        let before = fake.blobs_asked().len();
        pull(&other.puller(loopback()), &fake.name("web:1")).await.expect("it comes");
        assert_eq!(fake.blobs_asked().len() - before - 1, tries);
        assert!(!partial.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_hostile_or_not_what_the_configuration_names_leaves_nothing() {
    let evil = layer(&[file("../evil", "x")]);
    for (named, packed, expected) in [
        (evil.clone(), gzip(&evil), "its path leads upwards"),
        (layer(&[file("a", "1")]), gzip(&layer(&[file("a", "2")])), "its content has digest"),
        (evil.clone(), b"\x1f\x8bgarbage".to_vec(), "layer sha256"),
    ] {
        let bench = Bench::new();
        Layout::new(&bench.path("layout")).image_packed("1", &json!({}), &[named], &[(packed, GZIP)]);
        let shelf = Shelf::of(&bench.path("layout"));
        let fake = Fake::start(move |asked| shelf.reply(asked));
        let error = pull(&bench.puller(loopback()), &fake.name("web:1")).await.expect_err(expected);
        assert!(error.contains(expected), "{error}");
        assert_eq!(bench.kept(), (0, 0, 0), "{expected}");
        assert!(!bench.path("state/images/evil").exists());
    }
}
