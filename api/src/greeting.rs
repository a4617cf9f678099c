//! The first words on an HTTP/2 connection over TLS.
//!
//! With TLS 1.3 a client takes the handshake for done before the server has looked at its certificate: the refusal is an alert where the first
//! answer would be (RFC 8446 §4.4.2.4). Whoever used the connection by then would see it break, and only sometimes why. So it is
//! used once the server has said a word:
//!
//! ```text
//! client ── preface ──► server     said here; who uses the connection says it once more, and that goes nowhere
//!        ◄── SETTINGS, or an alert
//! ```

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// What a client says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection to a server that has answered the preface.
#[derive(Debug)]
pub struct Greeted<S> {
    stream: S,
    /// Bytes of the preface that its user has yet to say.
    left: usize,
}

/// Says the preface, and returns when it is answered.
pub async fn greet<S: AsyncBufRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<Greeted<S>> {
    let said = say(&mut stream).await;
    // A server that has hung up by then has said why before.
    let is_over = stream.fill_buf().await?.is_empty();
    said?;
    if is_over {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended the connection without a word"));
    }
    Ok(Greeted { stream, left: PREFACE.len() })
}

async fn say(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(PREFACE).await?;
    stream.flush().await
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        }
        let taken = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(this.left);
        this.left -= taken;
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, BufReader, duplex};

    use super::*;

    #[tokio::test]
    async fn the_preface_is_said_once_and_waits_for_an_answer() {
        let (ours, mut theirs) = duplex(1024);
        let server = tokio::spawn(async move {
            let mut heard = vec![0; PREFACE.len()];
            theirs.read_exact(&mut heard).await.unwrap();
            theirs.write_all(b"settings").await.unwrap();
            theirs.read_to_end(&mut heard).await.unwrap();
            heard
        });
        let mut greeted = greet(BufReader::new(ours)).await.unwrap();
        // However it is cut.
        for part in [&PREFACE[..10], &PREFACE[10..], &b"more"[..]] {
            greeted.write_all(part).await.unwrap();
        }
        greeted.shutdown().await.unwrap();
        let mut answer = [0; 8];
        greeted.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"settings", "the answer is for who uses the connection");
        assert_eq!(server.await.unwrap(), [PREFACE, &b"more"[..]].concat());
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_is_not_greeted() {
        let (ours, theirs) = duplex(1024);
        drop(theirs);
        assert!(greet(BufReader::new(ours)).await.is_err());
    }
}
