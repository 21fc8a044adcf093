//! The guest side of the boot tests: an init in machine code, the ELF file and the cpio archive around it.
//!
//! It needs no compiler at test time and no file. Its first argument (behind `--` on the kernel command line) says how it
//! ends: `reset`, `exit` (which makes the kernel panic) or `wait`; or `serve`, see below. Before that it writes `hi` to `from-guest` in the share
//! `pod` and to port 1024 of the host, if there are such, and prints what it found:
//! `READY cpus=<16 hex digits> memory=<16 hex digits>`.
//!
//! With `serve` it does nothing of that, prints `READY`, and listens on port 1025. For each connection it mounts the share
//! `pod`, writes the file, sends `hi` and closes.

use std::arch::global_asm;
use std::io::Write;
use std::path::Path;

global_asm!(
    ".pushsection .rodata.guest_init, \"a\"",
    ".globl guest_init_start",
    ".globl guest_init_end",
    "guest_init_start:",
    "mov r15, [rsp + 16]", // argv[1]
    "sub rsp, 256",
    "mov al, [r15]",
    "cmp al, 's'",
    "je 20f",
    // mount("pod", "/mnt", "virtiofs", 0, NULL)
    "mov eax, 165",
    "lea rdi, [rip + 10f]",
    "lea rsi, [rip + 11f]",
    "lea rdx, [rip + 12f]",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "syscall",
    // open("/mnt/from-guest", O_CREAT | O_WRONLY, 0644)
    "mov eax, 2",
    "lea rdi, [rip + 13f]",
    "mov esi, 0x41",
    "mov edx, 0x1a4",
    "syscall",
    // write(fd, "hi", 2)
    "mov edi, eax",
    "mov eax, 1",
    "lea rsi, [rip + 14f]",
    "mov edx, 2",
    "syscall",
    // socket(AF_VSOCK, SOCK_STREAM, 0)
    "mov eax, 41",
    "mov edi, 40",
    "mov esi, 1",
    "xor edx, edx",
    "syscall",
    "mov r12d, eax",
    // connect(fd, host port 1024)
    "mov edi, r12d",
    "mov eax, 42",
    "lea rsi, [rip + 15f]",
    "mov edx, 16",
    "syscall",
    // write(fd, "hi", 2)
    "mov edi, r12d",
    "mov eax, 1",
    "lea rsi, [rip + 14f]",
    "mov edx, 2",
    "syscall",
    // sched_getaffinity(0, 128, rsp)
    "mov eax, 204",
    "xor edi, edi",
    "mov esi, 128",
    "mov rdx, rsp",
    "syscall",
    // Count the bits of the first 64 CPUs.
    "mov rax, [rsp]",
    "xor r13d, r13d",
    "2:",
    "test rax, rax",
    "jz 3f",
    "lea rcx, [rax - 1]",
    "and rax, rcx",
    "inc r13",
    "jmp 2b",
    "3:",
    // sysinfo(rsp): total RAM at offset 32
    "mov eax, 99",
    "mov rdi, rsp",
    "syscall",
    "mov r14, [rsp + 32]",
    "lea rbx, [rip + 7f]",
    "mov rdi, rsp",
    // Copy the template, then fill in the numbers.
    "mov rsi, rbx",
    "mov ecx, 53",
    "rep movsb",
    "mov rax, r13",
    "lea rdi, [rsp + 26]",
    "call 5f",
    "mov rax, r14",
    "lea rdi, [rsp + 50]",
    "call 5f",
    // write(1, rsp, 52)
    "mov eax, 1",
    "mov edi, 1",
    "mov rsi, rsp",
    "mov edx, 52",
    "syscall",
    "mov al, [r15]",
    "cmp al, 'r'",
    "je 8f",
    "cmp al, 'e'",
    "je 9f",
    "4:", // pause() for ever
    "mov eax, 34",
    "syscall",
    "jmp 4b",
    "8:", // reboot(RB_AUTOBOOT)
    "mov eax, 169",
    "mov edi, 0xfee1dead",
    "mov esi, 0x28121969",
    "mov edx, 0x01234567",
    "syscall",
    "9:", // exit(7)
    "mov eax, 60",
    "mov edi, 7",
    "syscall",
    // serve: socket(AF_VSOCK, SOCK_STREAM, 0), bind, listen
    "20:",
    "mov eax, 41",
    "mov edi, 40",
    "mov esi, 1",
    "xor edx, edx",
    "syscall",
    "mov r12d, eax",
    "mov edi, r12d",
    "mov eax, 49",
    "lea rsi, [rip + 16f]",
    "mov edx, 16",
    "syscall",
    "mov edi, r12d",
    "mov eax, 50",
    "mov esi, 8",
    "syscall",
    // write(1, "READY\n", 6)
    "mov eax, 1",
    "mov edi, 1",
    "lea rsi, [rip + 17f]",
    "mov edx, 6",
    "syscall",
    // accept(fd, NULL, NULL)
    "21:",
    "mov eax, 43",
    "mov edi, r12d",
    "xor esi, esi",
    "xor edx, edx",
    "syscall",
    "mov r13d, eax",
    // The file, as above.
    "mov eax, 165",
    "lea rdi, [rip + 10f]",
    "lea rsi, [rip + 11f]",
    "lea rdx, [rip + 12f]",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "syscall",
    "mov eax, 2",
    "lea rdi, [rip + 13f]",
    "mov esi, 0x41",
    "mov edx, 0x1a4",
    "syscall",
    "mov r14d, eax",
    "mov edi, r14d",
    "mov eax, 1",
    "lea rsi, [rip + 14f]",
    "mov edx, 2",
    "syscall",
    "mov eax, 3",
    "mov edi, r14d",
    "syscall",
    // write(connection, "hi", 2), close(connection)
    "mov eax, 1",
    "mov edi, r13d",
    "lea rsi, [rip + 14f]",
    "mov edx, 2",
    "syscall",
    "mov eax, 3",
    "mov edi, r13d",
    "syscall",
    "jmp 21b",
    // Writes rax as 16 hex digits that end at rdi.
    "5:",
    "mov ecx, 16",
    "6:",
    "mov edx, eax",
    "and edx, 15",
    "cmp edx, 10",
    "jb 60f",
    "add edx, 39",
    "60:",
    "add edx, 48",
    "mov [rdi], dl",
    "dec rdi",
    "shr rax, 4",
    "dec ecx",
    "jnz 6b",
    "ret",
    "7:",
    ".ascii \"READY cpus=0000000000000000 memory=0000000000000000\\n\\n\"",
    "10: .asciz \"pod\"",
    "11: .asciz \"/mnt\"",
    "12: .asciz \"virtiofs\"",
    "13: .asciz \"/mnt/from-guest\"",
    "14: .asciz \"hi\"",
    // struct sockaddr_vm: family, reserved, port, context id, flags
    "15:",
    ".short 40, 0",
    ".long 1024, 2, 0",
    // The same with any context id, to listen on.
    "16:",
    ".short 40, 0",
    ".long 1025, 0xffffffff, 0",
    "17: .ascii \"READY\\n\"",
    "guest_init_end:",
    ".popsection",
);

unsafe extern "C" {
    static guest_init_start: u8;
    static guest_init_end: u8;
}

/// The machine code.
fn code() -> &'static [u8] {
    // SAFETY: both symbols delimit the bytes that the assembler block above put into read-only data.
    unsafe {
        let start = &raw const guest_init_start;
        let end = &raw const guest_init_end;
        std::slice::from_raw_parts(start, end.offset_from_unsigned(start))
    }
}

/// A static ELF64 executable with one segment.
fn elf() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let length = HEADERS + code().len() as u64;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2u16, 62].iter().flat_map(|v| v.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([BASE + HEADERS, 64, 0].iter().flat_map(|v| v.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    file.extend(
        [64u16, 56, 1, 64, 0, 0]
            .iter()
            .flat_map(|v| v.to_le_bytes()),
    );
    // PT_LOAD, read and execute.
    file.extend([1u32, 5].iter().flat_map(|v| v.to_le_bytes()));
    file.extend(
        [0, BASE, BASE, length, length, 0x1000]
            .iter()
            .flat_map(|v: &u64| v.to_le_bytes()),
    );
    file.extend(code());
    file
}

/// Writes an initramfs with `/dev/console` and the init, whose content begins a page: the guest uses it where it lies.
pub fn write_initramfs(path: &Path) {
    let mut archive = Vec::new();
    let mut inode = 1;
    let mut entry = |name: &str, mode: u32, device: (u32, u32), data: &[u8]| {
        // newc: magic, 13 fields of 8 hex digits, the name, padding to 4, the data, padding to 4. Zeros behind the name
        // bring the data to a page.
        let least = name.len() + 1;
        let name_at = archive.len() + 110;
        let name_bytes = match data {
            [] => least,
            _ => (name_at + least).next_multiple_of(4096) - name_at,
        };
        let fields = [
            inode,
            mode,
            0,
            0,
            1,
            0,
            data.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name_bytes as u32,
            0,
        ];
        inode += 1;
        write!(archive, "070701").unwrap();
        for field in fields {
            write!(archive, "{field:08x}").unwrap();
        }
        archive.extend(name.bytes());
        archive.resize(name_at + name_bytes, 0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    entry("dev", 0o040_755, (0, 0), &[]);
    entry("dev/console", 0o020_600, (5, 1), &[]);
    entry("mnt", 0o040_755, (0, 0), &[]);
    entry("init", 0o100_755, (0, 0), &elf());
    entry("TRAILER!!!", 0, (0, 0), &[]);
    std::fs::write(path, archive).unwrap();
}
