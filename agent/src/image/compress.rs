//! What layers and archives are packed with: gzip, zstd, nothing. Told by the first bytes, as media types are often wrong.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

const BUFFER_BYTES: usize = 128 << 10;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// A frame may ask the reader to remember this much (RFC 8878 section 3.1.1.1.2 recommends 8 MiB as the least to support).
const WINDOW_BYTES_MAX: u64 = 64 << 20;

/// The stream, unpacked when it is packed.
pub fn open<'a>(mut packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = [0; 4];
    let mut length = 0;
    while length < head.len() {
        match packed.read(&mut head[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(head).take(length as u64).chain(packed));
    Ok(if head == ZSTD || is_skippable(head) {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, Frames::new(whole)))
    } else if head.starts_with(&GZIP) {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(whole)))
    } else {
        Box::new(whole)
    })
}

/// A frame that is not data may come first (RFC 8878 section 3.1.2).
fn is_skippable(head: [u8; 4]) -> bool {
    u32::from_le_bytes(head) & 0xffff_fff0 == 0x184d_2a50
}

/// All frames of a zstd stream, one after the other.
struct Frames<R> {
    packed: R,
    decoder: FrameDecoder,
}

impl<R: BufRead> Frames<R> {
    fn new(packed: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW_BYTES_MAX);
        Self { packed, decoder }
    }

    /// Goes to the data of the next frame; false at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.packed.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.packed) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut self.packed.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(invalid(&error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.decoder.can_collect() == 0 {
            // A decoder that has begun nothing counts as finished, too.
            if self.decoder.is_finished() {
                if !self.next_frame()? {
                    return Ok(0);
                }
            } else {
                self.decoder.decode_blocks(&mut self.packed, BlockDecodingStrategy::UptoBlocks(1)).map_err(|error| invalid(&error))?;
            }
        }
        self.decoder.read(buffer)
    }
}

fn invalid(error: &FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {error}"))
}
