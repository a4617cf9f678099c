//! What goes to and fro between pods while a test does something else to them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::{Host, Lab, eventually};

/// The kernel sends a segment again after a second, where nothing says otherwise.
const AT_ONCE: Duration = Duration::from_millis(500);

/// The least time between two trips: the processors are also for what the test is about.
const PACE: Duration = Duration::from_millis(1);

/// A host's index and a pod of its.
pub type Pod<'a> = (usize, &'a str);

/// One trip after the other, until it is closed or dropped.
pub struct Traffic {
    trips: Arc<AtomicU64>,
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<io::Result<Duration>>,
}

impl Traffic {
    fn start(mut trip: impl FnMut() -> io::Result<()> + Send + 'static) -> Self {
        let (trips, (stop, stopped)) = (Arc::new(AtomicU64::new(0)), mpsc::channel());
        let counter = trips.clone();
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while stopped.recv_timeout(PACE) == Err(mpsc::RecvTimeoutError::Timeout) {
                let started = Instant::now();
                trip()?;
                longest = longest.max(started.elapsed());
                counter.fetch_add(1, Ordering::Relaxed);
            }
            Ok(longest)
        });
        Self { trips, stop, thread }
    }

    /// A TCP stream from the client to `to`, which leads to `at` in the server's pod; a byte goes there and back.
    pub fn stream(lab: &Lab, client: Pod<'_>, server: Pod<'_>, at: &str, to: &str) -> Self {
        echo(lab, server, at);
        Self::over(lab.hosts[client.0].connect(client.1, to).unwrap())
    }

    /// The same over a stream that leads to where `echo` listens.
    pub fn over(mut stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self::start(move || {
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])
        })
    }

    /// The same with datagrams of one socket, each awaited before the next is sent: one that is lost is an error.
    pub fn datagrams(lab: &Lab, client: Pod<'_>, server: Pod<'_>, at: &str, to: &str) -> Self {
        let echo = lab.hosts[server.0].udp(server.1, at);
        echo.set_read_timeout(None).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((len, from)) = echo.recv_from(&mut buffer) {
                drop(echo.send_to(&buffer[..len], from));
            }
        });
        let socket = lab.hosts[client.0].udp(client.1, "0.0.0.0:0");
        socket.connect(to.parse::<SocketAddr>().unwrap()).unwrap();
        Self::start(move || {
            socket.send(b"x")?;
            socket.recv(&mut [0]).map(drop)
        })
    }

    /// Waits until it has gone on for a while.
    pub fn goes_on(&self) {
        let before = self.trips.load(Ordering::Relaxed);
        eventually("what is under way goes on", || self.trips.load(Ordering::Relaxed) > before + 20);
    }

    /// Ends it; the longest trip, or why one failed.
    pub fn close(self) -> io::Result<Duration> {
        drop(self.stop);
        self.thread.join().expect("a trip does not panic")
    }
}

/// Says again what it hears on the one stream that comes to `at` in a pod.
pub fn echo(lab: &Lab, server: Pod<'_>, at: &str) {
    let listener = lab.hosts[server.0].listen(server.1, at);
    thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        io::Result::Ok(())
    });
}

/// How many TCP segments these pods have sent twice. A trip that was long because this machine was busy had nothing sent again.
pub fn sent_again(lab: &Lab, pods: &[Pod<'_>]) -> u64 {
    pods.iter().map(|(host, task)| lab.hosts[*host].inside(task, sent_again_here)).sum()
}

/// Fails where what a host, or a pod of its, does over TCP was not answered at once: it took long, and something was sent again. What takes
/// long because this machine is busy is sent once.
pub fn at_once<T>(host: &Host, task: Option<&str>, what: &str, work: impl FnOnce() -> T) -> T {
    let again = || task.map_or_else(|| host.here(sent_again_here), |task| host.inside(task, sent_again_here));
    let (begun, before) = (Instant::now(), again());
    let done = work();
    let (took, again) = (begun.elapsed(), again() - before);
    assert!(took < AT_ONCE || again == 0, "{what}: {took:?}, {again} sent again");
    done
}

/// The same of the calling thread's namespace.
pub fn sent_again_here() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let rows: Vec<Vec<&str>> = text.lines().filter(|line| line.starts_with("Tcp:")).map(|line| line.split(' ').collect()).collect();
    let column = rows[0].iter().position(|name| *name == "RetransSegs").unwrap();
    rows[1][column].parse().unwrap()
}
