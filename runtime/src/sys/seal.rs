//! The seal of `parent/own_binary` before the C library starts.
//!
//! What makes containers executes itself once more, and the start of a C library is most of what that costs: it asks the processor for its
//! caches by some hundred CPUID instructions, each of which leaves a virtual machine (0.6 ms where a whole `run` takes 6). So the
//! program's entry point is this code. It needs no memory, no relocation and no library: where the arguments name a verb that makes
//! containers, it clones the mount the program lies on, makes the clone read-only and executes the program from there; then, or when
//! anything fails, it goes on to the library's own entry point. It decides nothing: `protect` looks again and is the one that refuses.
//!
//! The stack and `rdx` at the entry are as in the psABI (x86-64, 3.4.1, "Initial Stack and Register State").

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    r#"
    .section .text.rcluster_start, "ax", @progbits
    .globl rcluster_start
    .type rcluster_start, @function
rcluster_start:
    lea r13, [rsp + 8]              // argv
    mov r12, rdx
    mov r15, r13
20: add r15, 8
    mov rsi, [r15]
    test rsi, rsi
    jz 90f
    mov eax, [rsi]
    cmp eax, 0x006e7572             // "run\0"
    je 40f
    cmp eax, 0x63657865             // "exec"
    jne 30f
    cmp byte ptr [rsi + 4], 0
    je 40f
    jmp 20b
30: cmp eax, 0x696e6f6d             // "moni"
    jne 35f
    cmp dword ptr [rsi + 4], 0x00726f74 // "tor\0"
    je 40f
    jmp 20b
35: cmp eax, 0x61657263             // "crea"
    jne 20b
    cmp word ptr [rsi + 4], 0x6574  // "te"
    jne 20b
    cmp byte ptr [rsi + 6], 0
    jne 20b

40: sub rsp, 128
    mov eax, 257                    // openat(AT_FDCWD, "/proc/self/exe", O_PATH | O_CLOEXEC)
    mov edi, -100
    lea rsi, [rip + 80f]
    mov edx, 0x280000
    xor r10d, r10d
    syscall
    test eax, eax
    js 70f
    mov r14d, eax
    mov eax, 138                    // fstatfs(file, buffer)
    mov edi, r14d
    mov rsi, rsp
    syscall
    test eax, eax
    jnz 60f
    test byte ptr [rsp + 80], 1     // f_flags & ST_RDONLY
    jnz 60f
    mov eax, 428                    // open_tree(file, "", CLONE | CLOEXEC | AT_EMPTY_PATH)
    mov edi, r14d
    lea rsi, [rip + 81f]
    mov edx, 0x81001
    syscall
    test eax, eax
    js 60f
    mov ebp, eax
    mov qword ptr [rsp], 1          // attr_set: MOUNT_ATTR_RDONLY
    mov qword ptr [rsp + 8], 0
    mov qword ptr [rsp + 16], 0
    mov qword ptr [rsp + 24], 0
    mov eax, 442                    // mount_setattr(clone, "", AT_EMPTY_PATH, attr, 32)
    mov edi, ebp
    lea rsi, [rip + 81f]
    mov edx, 0x1000
    mov r10, rsp
    mov r8d, 32
    syscall
    test eax, eax
    jnz 50f
    mov eax, 322                    // execveat(clone, "", argv, envp, AT_EMPTY_PATH)
    mov edi, ebp
    lea rsi, [rip + 81f]
    mov rdx, r13
    mov r10, [rsp + 128]            // argc
    lea r10, [r13 + r10 * 8 + 8]
    mov r8d, 0x1000
    syscall
50: mov eax, 3                      // close(clone)
    mov edi, ebp
    syscall
60: mov eax, 3                      // close(file)
    mov edi, r14d
    syscall
70: add rsp, 128
90: mov rdx, r12
    xor ebp, ebp
    jmp _start

80: .asciz "/proc/self/exe"
81: .byte 0
    .size rcluster_start, . - rcluster_start
"#
);
