//! An etcd of a test's own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rcluster_manager::store::etcd::Access;
use tempfile::TempDir;

/// Longest wait for what must happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// One etcd server; it is killed when this goes.
#[derive(Debug)]
pub struct Server {
    dir: TempDir,
    host: Ipv4Addr,
    is_secured: bool,
    process: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Server {
    /// An empty one, which answers.
    pub async fn start() -> Self {
        Self::start_as(false).await
    }

    /// One that wants TLS, a client's certificate, and a password.
    pub async fn start_secured() -> Self {
        let server = Self::start_as(true).await;
        let mut client = server.client().await;
        client.user_add("root", "secret", None).await.unwrap();
        client.role_add("root").await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.auth_enable().await.unwrap();
        server.write("password", "secret\n");
        server
    }

    async fn start_as(is_secured: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = rand::random::<[u8; 3]>();
        let host = Ipv4Addr::new(127, a.clamp(1, 250), b, c.clamp(1, 250));
        if is_secured {
            make_certificates(&dir, host);
        }
        let process = spawn(&dir, host, is_secured);
        let server = Self { dir, host, is_secured, process };
        server.ready().await;
        server
    }

    async fn ready(&self) {
        let answers = async { while !self.answers().await {} };
        tokio::time::timeout(DEADLINE, answers).await.expect("etcd answers");
    }

    async fn answers(&self) -> bool {
        let ask = async { Client::connect([self.endpoint()], self.options()).await?.get("x", None).await };
        let answered = tokio::time::timeout(Duration::from_secs(1), ask).await.is_ok_and(|answer| answer.is_ok());
        if !answered {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        answered
    }

    pub fn endpoint(&self) -> String {
        format!("{}:2379", self.host)
    }

    pub fn access(&self) -> Access {
        let address = format!("etcd://{}/test", self.endpoint()).parse().unwrap();
        if !self.is_secured {
            return Access { address, ca: None, certificate: None, user: None };
        }
        let file = |name: &str| self.dir.path().join(name);
        let certificate = Some((file("own.pem"), file("own.key")));
        Access { address, ca: Some(file("ca.pem")), certificate, user: Some(("root".to_owned(), file("password"))) }
    }

    /// A file beside the server's.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn options(&self) -> Option<ConnectOptions> {
        let read = |name: &str| std::fs::read(self.dir.path().join(name)).unwrap();
        let tls = || TlsOptions::new().ca_certificate(Certificate::from_pem(read("ca.pem")));
        self.is_secured.then(|| ConnectOptions::new().with_tls(tls().identity(Identity::from_pem(read("own.pem"), read("own.key")))))
    }

    /// As an operator reaches it.
    pub async fn client(&self) -> Client {
        Client::connect([self.endpoint()], self.options()).await.unwrap()
    }

    /// Its revision, which every write raises, and each key of the tests' with its value.
    pub async fn held(&self) -> (i64, Vec<(Vec<u8>, Vec<u8>)>) {
        let options = GetOptions::new().with_prefix();
        let mut answer = self.client().await.get("/test/", Some(options)).await.unwrap();
        let keys = answer.take_kvs().into_iter().map(|kv| (kv.key().to_vec(), kv.value().to_vec())).collect();
        (answer.header().unwrap().revision(), keys)
    }

    pub fn stop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }

    /// Keeps a copy of what it has, to go back to.
    pub async fn back_up(&mut self) {
        self.stop();
        copy(&self.dir.path().join("data"), &self.dir.path().join("backup"));
        self.again().await;
    }

    /// Goes back to what it had then.
    pub async fn go_back(&mut self) {
        self.stop();
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        copy(&self.dir.path().join("backup"), &self.dir.path().join("data"));
        self.again().await;
    }

    /// Starts it again on what it had.
    pub async fn again(&mut self) {
        self.process = spawn(&self.dir, self.host, self.is_secured);
        self.ready().await;
    }
}

/// A copy of a directory's files.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

/// An authority, and the certificate that it gave to both ends.
fn make_certificates(dir: &TempDir, host: Ipv4Addr) {
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca.pem", authority.self_signed(&authority_key).unwrap().pem());
    let params = CertificateParams::new(vec![host.to_string()]).unwrap();
    write("own.pem", params.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap().pem());
    write("own.key", key.serialize_pem());
}

fn spawn(dir: &TempDir, host: Ipv4Addr, is_secured: bool) -> Child {
    let scheme = if is_secured { "https" } else { "http" };
    let (client, peer) = (format!("{scheme}://{host}:2379"), format!("http://{host}:2380"));
    let log = std::fs::File::options().create(true).append(true).open(dir.path().join("log")).unwrap();
    let mut command = Command::new("etcd");
    command.args(["--name", "e", "--data-dir"]).arg(dir.path().join("data"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("e={peer}")]);
    if is_secured {
        let file = |name: &str| dir.path().join(name);
        command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(file("ca.pem"));
        command.arg("--cert-file").arg(file("own.pem")).arg("--key-file").arg(file("own.key"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().expect("etcd is there: apt-get install etcd-server")
}
