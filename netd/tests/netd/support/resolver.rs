//! A resolver in a host's own namespaces that answers as a test says.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};

use super::Host;

/// Serves UDP until it is dropped.
pub struct Resolver {
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Resolver {
    /// At `ip`, port 53; each question is given to `script`, with the socket to answer by and who asked.
    pub fn start(host: &Host, ip: &str, mut script: impl FnMut(&UdpSocket, SocketAddr, &Message) + Send + 'static) -> Self {
        let at: SocketAddr = format!("{ip}:53").parse().unwrap();
        let socket = host.here(move || UdpSocket::bind(at)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, stopped) = (asked.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
                let message = Message::from_vec(&buffer[..len]).unwrap();
                log.lock().unwrap().push(message.queries[0].name().to_string());
                script(&socket, from, &message);
            }
        });
        Self { asked, stop, thread: Some(thread) }
    }

    /// The names that it was asked for.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// An answer to `asked` with these addresses.
pub fn answer(asked: &Message, addresses: &[Ipv4Addr], ttl: u32) -> Message {
    let mut message = Message::response(asked.metadata.id, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.recursion_available = true;
    message.add_queries(asked.queries.iter().cloned());
    let name = asked.queries[0].name();
    message.add_answers(addresses.iter().map(|ip| Record::from_rdata(name.clone(), ttl, RData::A(A(*ip)))));
    message
}

/// Sends a message.
pub fn send(socket: &UdpSocket, to: SocketAddr, message: &Message) {
    socket.send_to(&message.to_vec().unwrap(), to).unwrap();
}
