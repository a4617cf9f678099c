//! What the log's bytes mean. Pure: bytes in, records or a verdict out; the module above does what is decided here.

pub mod record;
pub mod replay;

#[cfg(test)]
mod tests;
