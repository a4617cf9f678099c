//! Registries on loopback: Debian's docker-registry, and one that does what a test tells it to.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing here may take longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection on which nothing more comes stays, if the test goes on for so long.
const HELD: Duration = Duration::from_secs(60);

/// Debian's docker-registry with a directory of its own; ends with the value.
pub struct Real {
    pub addr: SocketAddr,
    process: Child,
    _dir: tempfile::TempDir,
}

/// How a real registry is set up.
#[derive(Default)]
pub struct Setup {
    /// Lines of an htpasswd file.
    pub users: Option<&'static str>,
    /// Certificate and key.
    pub tls: Option<(PathBuf, PathBuf)>,
}

impl Real {
    pub fn start(setup: &Setup) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:0\n",
            path("storage").display()
        );
        if let Some((certificate, key)) = &setup.tls {
            config += &format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display());
        }
        if let Some(users) = setup.users {
            fs::write(path("htpasswd"), users).expect("write");
            config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path("htpasswd").display());
        }
        fs::write(path("config.yml"), config).expect("write");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path("config.yml")).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("docker-registry is installed by `make tools`");
        let (sender, said) = mpsc::channel();
        let log = process.stderr.take().expect("piped");
        // Reads for as long as the registry writes, so that it never waits for a reader.
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if let Some(addr) = line.split("listening on ").nth(1) {
                    let addr: String = addr.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
                    drop(sender.send(addr));
                }
            }
        });
        let addr = said.recv_timeout(PATIENCE);
        let mut registry = Self { addr: SocketAddr::from(([127, 0, 0, 1], 1)), process, _dir: dir };
        registry.addr = addr.expect("it says where it listens").parse().expect("an address");
        registry
    }

    /// Copies an image of an OCI layout with skopeo; returns its name.
    pub fn push(&self, layout: &Path, tag: &str, repository: &str, options: &[&str]) -> String {
        let name = format!("{}/{repository}:{tag}", self.addr);
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]).args(options);
        command.arg(format!("oci:{}:{tag}", layout.display())).arg(format!("docker://{name}"));
        let output = command.output().expect("skopeo is installed by `make tools`");
        assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
        name
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        drop((self.process.kill(), self.process.wait()));
    }
}

/// A certificate authority, and a certificate of it for 127.0.0.1, made by openssl: (authority, certificate, key).
pub fn certificates(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().expect("openssl is installed by `make tools`");
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    };
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let (ca, ca_key, key, request, certificate) =
        (path("ca.pem"), path("ca.key"), path("server.key"), path("server.csr"), path("server.pem"));
    run(&[&["req", "-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", &ca_key, "-out", &ca][..], &curve].concat());
    run(&[&["req", "-subj", "/CN=registry", "-keyout", &key, "-out", &request][..], &curve].concat());
    fs::write(path("ext"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").expect("write");
    let ext = path("ext");
    run(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        &request,
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-CAcreateserial",
        "-extfile",
        &ext,
        "-out",
        &certificate,
    ]);
    (ca.into(), certificate.into(), key.into())
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }

    pub fn range_from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// An answer and how it is given.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Whole,
    /// The connection ends after so many bytes of the body.
    CutAt(usize),
    /// Nothing comes after so many bytes, and the connection stays.
    StallAt(usize),
    /// A byte now and then.
    Drip,
}

pub fn reply(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply { status, headers: Vec::new(), body: body.into(), how: How::Whole }
}

impl Reply {
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn how(self, how: How) -> Self {
        Self { how, ..self }
    }
}

/// The images of a layout, answered as a registry does.
#[derive(Clone)]
pub struct Shelf {
    blobs: BTreeMap<String, Vec<u8>>,
    tags: BTreeMap<String, String>,
}

impl Shelf {
    pub fn of(layout: &Path) -> Self {
        let read = |path: PathBuf| fs::read(path).expect("read");
        let blobs = fs::read_dir(layout.join("blobs/sha256")).expect("list").map(|entry| {
            let path = entry.expect("entry").path();
            (format!("sha256:{}", path.file_name().expect("a name").to_string_lossy()), read(path))
        });
        let index: Value = serde_json::from_slice(&read(layout.join("index.json"))).expect("json");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let tags = index["manifests"].as_array().expect("a list").iter();
        let tags = tags.map(|entry| (text(&entry["annotations"]["org.opencontainers.image.ref.name"]), text(&entry["digest"])));
        Self { blobs: blobs.collect(), tags: tags.collect() }
    }

    /// Keeps bytes under a name of one's own, such as a wrong digest.
    pub fn put(&mut self, digest: &str, bytes: Vec<u8>) {
        self.blobs.insert(digest.into(), bytes);
    }

    pub fn tag(&mut self, tag: &str, bytes: Vec<u8>) {
        let digest = format!("sha256:{}", super::image::hex(&bytes));
        self.tags.insert(tag.into(), digest.clone());
        self.blobs.insert(digest, bytes);
    }

    pub fn digest(&self, tag: &str) -> &str {
        &self.tags[tag]
    }

    pub fn blob(&self, digest: &str) -> &[u8] {
        &self.blobs[digest]
    }

    pub fn manifest(&self, tag: &str) -> Value {
        serde_json::from_slice(self.blob(self.digest(tag))).expect("json")
    }

    /// As a registry that knows ranges.
    pub fn reply(&self, asked: &Asked) -> Reply {
        let last = asked.path.rsplit('/').next().expect("a part");
        let is_manifest = asked.path.contains("/manifests/");
        let digest = if is_manifest { self.tags.get(last).map_or(last, String::as_str) } else { last };
        let Some(bytes) = self.blobs.get(digest) else { return reply(404, r#"{"errors":[{"code":"UNKNOWN","message":"not here"}]}"#) };
        if is_manifest {
            let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
            return reply(200, bytes.clone()).with("content-type", document["mediaType"].as_str().unwrap_or("text/plain"));
        }
        match asked.range_from().filter(|from| *from < bytes.len()) {
            Some(from) => reply(206, &bytes[from..]).with("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
            None => reply(200, bytes.clone()),
        }
    }
}

/// A server in plain HTTP that answers as a function says, and remembers what it was asked.
pub struct Fake {
    pub addr: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    ending: Arc<AtomicBool>,
}

impl Fake {
    pub fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let addr = listener.local_addr().expect("an address");
        let (asked, ending) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (answer, all, end) = (Arc::new(answer), Arc::clone(&asked), Arc::clone(&ending));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                let (answer, all, end) = (Arc::clone(&answer), Arc::clone(&all), Arc::clone(&end));
                // A client that goes away is not this side's fault.
                std::thread::spawn(move || serve(stream, &*answer, &all, &end));
            }
        });
        Self { addr, asked, ending }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("not poisoned").clone()
    }

    pub fn blobs_asked(&self) -> Vec<Asked> {
        self.asked().into_iter().filter(Asked::is_blob).collect()
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.addr)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is to end.
        drop(TcpStream::connect(self.addr));
    }
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(&Asked) -> Reply, all: &Mutex<Vec<Asked>>, ending: &AtomicBool) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut parts = first.split_whitespace();
    let (method, path) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let asked = Asked { method, path, headers, body: String::from_utf8_lossy(&body).into_owned() };
    all.lock().expect("not poisoned").push(asked.clone());
    let reply = answer(&asked);
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| name == "content-length") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes()).ok()?;
    let hold = |pause: Duration, mut more: Box<dyn FnMut() -> bool>| {
        let deadline = Instant::now() + HELD;
        while !ending.load(Ordering::SeqCst) && Instant::now() < deadline && more() {
            std::thread::sleep(pause);
        }
    };
    match reply.how {
        How::Whole => stream.write_all(&reply.body).ok()?,
        How::CutAt(bytes) => stream.write_all(&reply.body[..bytes.min(reply.body.len())]).ok()?,
        How::StallAt(bytes) => {
            stream.write_all(&reply.body[..bytes.min(reply.body.len())]).ok()?;
            hold(Duration::from_millis(10), Box::new(|| true));
        }
        How::Drip => {
            let mut bytes = reply.body.into_iter();
            hold(Duration::from_millis(5), Box::new(move || bytes.next().is_some_and(|byte| stream.write_all(&[byte]).is_ok())));
        }
    }
    Some(())
}
