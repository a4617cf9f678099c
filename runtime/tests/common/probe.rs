//! A program that makes chosen system calls and nothing else, written as machine code: no C library between a test and the kernel, no
//! compiler needed, and no call but the chosen ones that a filter would have to allow.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::Path;

use super::write_program;

/// Where the program's one segment is: headers, code, data, results.
const BASE: u64 = 0x40_0000;
const CODE: u64 = BASE + 0x1000;
const DATA: u64 = BASE + 0x1_0000;
const RESULTS: u64 = BASE + 0x2_0000;
const SIZE: u64 = 0x3_0000;

/// x86_64's numbers of the calls that end every probe.
const WRITE: u32 = 1;
const EXIT: u32 = 60;

/// A program for x86_64.
#[derive(Default)]
pub struct Probe {
    code: Vec<u8>,
    data: Vec<u8>,
    results: u64,
}

impl Probe {
    /// A call by x86_64's way; its result is printed.
    pub fn call(&mut self, number: u32, args: &[u64]) -> &mut Self {
        self.registers(number, args);
        self.code.extend([0x0f, 0x05]);
        self.keep_result()
    }

    /// A call by 32-bit x86's way, which 64-bit programs have too (`int 0x80`).
    pub fn call_x86(&mut self, number: u32, args: &[u32]) -> &mut Self {
        // eax, then ebx ecx edx esi edi.
        self.load_32(0xb8, number);
        for (opcode, arg) in [0xbb, 0xb9, 0xba, 0xbe, 0xbf].into_iter().zip(args) {
            self.load_32(opcode, *arg);
        }
        self.code.extend([0xcd, 0x80]);
        self.keep_result()
    }

    /// Bytes that the program may point to and change.
    pub fn data(&mut self, bytes: &[u8]) -> u64 {
        let place = DATA + self.data.len() as u64;
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        place
    }

    /// Copies eight bytes.
    pub fn copy(&mut self, from: u64, to: u64) -> &mut Self {
        self.code.extend([0x48, 0xa1]);
        self.code.extend(from.to_le_bytes());
        self.code.extend([0x48, 0xa3]);
        self.code.extend(to.to_le_bytes());
        self
    }

    /// Prints bytes that are not a result.
    pub fn print(&mut self, place: u64, length: u64) -> &mut Self {
        self.registers(WRITE, &[1, place, length]);
        self.code.extend([0x0f, 0x05]);
        self
    }

    /// Writes the program, which prints the results and ends.
    pub fn write(&mut self, path: &Path) {
        self.print(RESULTS, self.results * 8);
        self.registers(EXIT, &[0]);
        self.code.extend([0x0f, 0x05]);
        let mut image = vec![0; usize::try_from(DATA - BASE).unwrap()];
        image[..64].copy_from_slice(&header());
        let file_bytes = image.len() + self.data.len();
        image[64..120].copy_from_slice(&segment(file_bytes));
        let code = usize::try_from(CODE - BASE).unwrap();
        image[code..code + self.code.len()].copy_from_slice(&self.code);
        image.extend(&self.data);
        write_program(path, image);
    }

    /// rax, then rdi rsi rdx r10 r8 r9.
    fn registers(&mut self, number: u32, args: &[u64]) {
        self.load_32(0xb8, number);
        for (opcode, arg) in [[0x48, 0xbf], [0x48, 0xbe], [0x48, 0xba], [0x49, 0xba], [0x49, 0xb8], [0x49, 0xb9]].into_iter().zip(args) {
            self.code.extend(opcode);
            self.code.extend(arg.to_le_bytes());
        }
    }

    fn load_32(&mut self, opcode: u8, value: u32) {
        self.code.push(opcode);
        self.code.extend(value.to_le_bytes());
    }

    fn keep_result(&mut self) -> &mut Self {
        self.code.extend([0x48, 0xa3]);
        self.code.extend((RESULTS + self.results * 8).to_le_bytes());
        self.results += 1;
        self
    }
}

/// The results that a probe printed.
pub fn results(printed: &[u8]) -> Vec<i64> {
    printed.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// elf(5): an executable for x86_64 with one program header behind this one.
fn header() -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    bytes.extend(CODE.to_le_bytes());
    bytes.extend(64u64.to_le_bytes());
    bytes.extend([0; 12]);
    bytes.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// One segment, to be read, written and executed; what is behind the file's end is zero.
fn segment(file_bytes: usize) -> Vec<u8> {
    let mut bytes = [1u32, 7].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    for long in [0, BASE, BASE, file_bytes as u64, SIZE, 0x1000] {
        bytes.extend(u64::to_le_bytes(long));
    }
    bytes
}
