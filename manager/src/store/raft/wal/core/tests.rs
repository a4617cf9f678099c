//! What is read back from segments that were cut, flipped, or are as they were written.
