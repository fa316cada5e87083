//! The code with which a zygote starts a run, and the page that tells it how.
//!
//! # Design
//!
//! A zygote is a Python interpreter, and a copy of it must become a run. What has to happen in between
//! (namespaces, mounts, a process 1 that is not the program) cannot be written in Python: it happens in a
//! process that shares the interpreter's memory while the interpreter is suspended. So it is written here,
//! as code that stands alone, in two functions:
//!
//! * `split`: goes on in a child that shares this process's memory and its place on the stack; the parent
//!   is suspended until the child ends, reaps it, and ends too. The kernel never chooses a process that
//!   shares its memory with a suspended parent when it kills for want of memory.
//! * `run`: starts init with `clone3` as the page says. Init makes the page's calls one by one, forks, and
//!   waits until the fork has ended. The fork, which has a copy of the interpreter's memory, reads its
//!   orders, makes the calls that these list, and returns 0 from `run` in the interpreter's place; the
//!   interpreter itself gets init's number when all is over.
//!
//! The page holds the setup key (see [`crate::seccomp`]). The interpreter maps it with `MADV_DONTFORK`, so
//! it is not in the memory of any run, and init clears the register that carried the key before it forks.
//! Nothing of a run passes through the interpreter's memory either: it reads its orders when it is itself.

use std::arch::global_asm;

use super::raw::setup_key;
use crate::protocol::Stage;

/// Where the interpreter maps the code; the page follows, then init's stack.
pub const CODE_AT: u64 = 0x1000_0000_0000;
/// Where it maps the page.
pub const PAGE_AT: u64 = CODE_AT + PAGE_SIZE;
/// Where init's stack begins.
pub const STACK_AT: u64 = PAGE_AT + PAGE_SIZE;
/// How long init's stack is: the C library's fork runs on it, with the handlers that libraries gave it.
pub const STACK_SIZE: u64 = 64 << 10;
const PAGE_SIZE: u64 = 4096;
const PAGE_BYTES: usize = 4096;

/// Where a run reads its orders to: memory that the zygote itself never touches.
pub const ORDERS_AT: u64 = STACK_AT + STACK_SIZE;
/// How long orders may be.
pub const ORDERS_SIZE: u64 = 64 << 10;

/// Descriptors of a zygote: its socket, itself as a pidfd, the cgroup (v2) of its runs; of a run: its files,
/// its standard streams, its orders.
const SOCKET: i32 = 10;
const OWN_PIDFD: i32 = 11;
const CGROUP: i32 = 12;
const FILES: i32 = 13;
/// See [`SOCKET`].
pub const STANDARD: [i32; 3] = [14, 15, 16];
const ORDERS: i32 = 17;

/// The first byte of what a run tells the spawner when one of its calls fails; then the error, then the
/// stage, a word each.
pub const CALL_FAILED: u8 = 8;

/// Offsets in the page, for the interpreter: the stage, the status after it, the addresses of the C
/// library's `fork` and of its `__errno_location`.
pub const STAGE: u64 = 0;
/// See [`STAGE`].
pub const FORK: u64 = 16;
/// See [`STAGE`].
pub const ERRNO: u64 = 24;

// The rest of the page, which only the code below knows.
const COUNT: u64 = 32;
const CLONE: u64 = 48;
const KEY: u64 = 136;
const POLL: u64 = 144;
const TEXT: u64 = 160;
const CALLS: u64 = 256;

global_asm!(
    ".pushsection .text.k15_zygote, \"ax\", @progbits",
    ".balign 16",
    "k15_zygote_start:",
    // run(page)
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov rbx, rsp",
    "mov r12, rdi",
    "lea rdi, [r12 + {CLONE}]",
    "mov esi, 88",
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "mov r9, [r12 + {KEY}]",
    "mov eax, {CLONE3}",
    "syscall",
    "xor r9d, r9d",
    "test rax, rax",
    "jz 20f",
    "10:", // the interpreter, and later its copy
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    "20:", // init: the page's calls
    "xor ebp, ebp",
    "lea r13, [r12 + {CALLS}]",
    "mov r14, [r12 + {COUNT}]",
    "21:",
    "mov eax, [r13 + 64]",
    "mov [r12 + {STAGE}], eax",
    "mov rax, [r13]",
    "mov rdi, [r13 + 8]",
    "mov rsi, [r13 + 16]",
    "mov rdx, [r13 + 24]",
    "mov r10, [r13 + 32]",
    "mov r8, [r13 + 40]",
    "mov r9, [r13 + 48]",
    "syscall",
    "xor r9d, r9d",
    "cmp rax, [r13 + 56]", // unsigned, so that errors are more than any result
    "ja 40f",
    "add r13, 72",
    "dec r14",
    "jnz 21b",
    "mov dword ptr [r12 + {STAGE}], {AT_FORK}",
    "call [r12 + {FORK}]",
    "test eax, eax",
    "jnz 30f",
    "movabs r13, {ORDERS_AT}", // the copy: the orders' calls
    "xor eax, eax",            // read
    "mov edi, {ORDERS}",
    "mov rsi, r13",
    "mov edx, {ORDERS_SIZE}",
    "syscall",
    "mov r14, [r13]",
    "lea r15, [r13 + {HEAD}]",
    "25:",
    "mov rax, [r15]",
    "mov rdi, [r15 + 8]",
    "mov rsi, [r15 + 16]",
    "mov rdx, [r15 + 24]",
    "mov r10, [r15 + 32]",
    "mov r8, [r15 + 40]",
    "mov r9, [r15 + 48]",
    "syscall",
    "cmp rax, [r15 + 56]",
    "ja 26f",
    "add r15, 72",
    "dec r14",
    "jnz 25b",
    "mov rsp, rbx", // back to where the interpreter was
    "xor eax, eax",
    "jmp 10b",
    "26:", // a call failed: tell, and end
    "neg eax",
    "sub rsp, 16",
    "mov byte ptr [rsp], {CALL_FAILED}",
    "mov [rsp + 1], eax",
    "mov eax, [r15 + 64]",
    "mov [rsp + 5], eax",
    "mov edi, {SOCKET}",
    "mov rsi, rsp",
    "mov edx, 9",
    "mov eax, {WRITE}",
    "syscall",
    "mov edi, 127",
    "jmp 42f",
    "30:", // init: wait for the copy's end
    "js 41f",
    "mov r15d, eax",
    "mov dword ptr [r12 + {STAGE}], {KILLED}",
    "31:",
    "mov edi, -1",
    "lea rsi, [r12 + 8]",
    "mov edx, 0x40000000", // __WALL
    "xor r10d, r10d",
    "mov eax, {WAIT4}",
    "syscall",
    "cmp eax, r15d",
    "je 32f",
    "test eax, eax",
    "jns 31b",
    "cmp eax, -4", // EINTR
    "je 31b",
    "mov edi, 1",
    "jmp 42f",
    "32:",
    "mov eax, [r12 + 8]",
    "mov [r12 + {STAGE} + 4], eax",
    "mov dword ptr [r12 + {STAGE}], {ENDED}",
    "xor edi, edi",
    "jmp 42f",
    "41:", // fork failed: its error is where the C library puts it
    "call [r12 + {ERRNO}]",
    "xor ecx, ecx",
    "sub ecx, [rax]",
    "mov eax, ecx",
    "40:", // a call failed: minus its error is in eax
    "neg eax",
    "mov [r12 + {STAGE} + 4], eax",
    "mov edi, 1",
    "42:",
    "mov eax, {EXIT_GROUP}",
    "syscall",
    "ud2",
    ".balign 16",
    "k15_zygote_split:",
    // split()
    "mov edi, {SPLIT_FLAGS}",
    "xor esi, esi",
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "mov eax, {CLONE_CALL}",
    "syscall",
    "test rax, rax",
    "jg 50f",
    "ret", // the child, or the parent if there is none
    "50:", // the parent, when the child is gone: its stack is no longer its own
    "mov edi, eax",
    "xor esi, esi",
    "mov edx, 0x40000000",
    "xor r10d, r10d",
    "mov eax, {WAIT4}",
    "syscall",
    "xor edi, edi",
    "mov eax, {EXIT_GROUP}",
    "syscall",
    "ud2",
    "k15_zygote_end:",
    ".popsection",
    ORDERS_AT = const ORDERS_AT,
    ORDERS_SIZE = const ORDERS_SIZE,
    ORDERS = const ORDERS,
    HEAD = const HEAD,
    SOCKET = const SOCKET,
    CALL_FAILED = const CALL_FAILED,
    WRITE = const libc::SYS_write,
    STAGE = const STAGE,
    FORK = const FORK,
    ERRNO = const ERRNO,
    COUNT = const COUNT,
    CLONE = const CLONE,
    KEY = const KEY,
    CALLS = const CALLS,
    CLONE3 = const libc::SYS_clone3,
    CLONE_CALL = const libc::SYS_clone,
    WAIT4 = const libc::SYS_wait4,
    EXIT_GROUP = const libc::SYS_exit_group,
    SPLIT_FLAGS = const libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
    AT_FORK = const Stage::Fork as u8,
    KILLED = const Stage::Killed as u8,
    ENDED = const Stage::Ended as u8,
);

unsafe extern "C" {
    static k15_zygote_start: u8;
    static k15_zygote_split: u8;
    static k15_zygote_end: u8;
}

/// How far `split` lies behind `run`, which is where the code begins.
#[must_use]
pub fn split_offset() -> u64 {
    (&raw const k15_zygote_split as u64) - (&raw const k15_zygote_start as u64)
}

/// The code.
fn code() -> &'static [u8] {
    let start = &raw const k15_zygote_start;
    let length = (&raw const k15_zygote_end as usize) - start as usize;
    // SAFETY: the two labels enclose the code above, which is never written to.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// Code and page as the interpreter maps them. Runs get `namespaces` (`CLONE_NEW*`) of their own and a cgroup
/// namespace, and start in the cgroup behind [`CGROUP`] if `in_cgroup`.
#[must_use]
pub fn image(namespaces: i32, in_cgroup: bool) -> Vec<u8> {
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    let key = setup_key() as u64;
    let mut page = Page([0; PAGE_BYTES]);

    // The root of one that comes with the process is its parent's cgroup.
    let groups = if in_cgroup { 0 } else { libc::CLONE_NEWCGROUP };
    let flags = (libc::CLONE_VM | libc::CLONE_VFORK | namespaces | groups) as u32 as u64;
    let into = if in_cgroup { CLONE_INTO_CGROUP } else { 0 };
    // struct clone_args: flags, three pointers, the signal, the stack, and from the third on what is unused.
    let arguments = [
        (0, flags | into),
        (4, libc::SIGCHLD as u64),
        (5, STACK_AT),
        (6, STACK_SIZE),
        (10, if in_cgroup { CGROUP as u64 } else { 0 }),
    ];
    for (field, value) in arguments {
        page.put(CLONE + 8 * field, value);
    }
    page.put(KEY, key);
    page.put(POLL, OWN_PIDFD as u64 | (libc::POLLIN as u64) << 32); // struct pollfd

    let mut at = TEXT;
    let mut text = |words: &[u8]| {
        let start = at;
        for &byte in words.iter().chain(&[0]) {
            page.byte(at, byte);
            at += 1;
        }
        PAGE_AT + start
    };
    let (nothing, files, kind, target) = (text(b""), text(b"/tmp"), text(b"proc"), text(b"/proc"));
    let options = text(b"subset=pid,hidepid=2");

    let here = libc::AT_FDCWD as i64 as u64;
    let whole = 4; // MOVE_MOUNT_F_EMPTY_PATH
    let mount_flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let signal = libc::SIGKILL as u64;
    let death = libc::PR_SET_PDEATHSIG as u64;
    // The stage, the call, its arguments. All must answer 0; the poll does when the zygote lives.
    let calls = [
        (Stage::Guard, libc::SYS_prctl, [death, signal, 0, 0, 0, 0]),
        (Stage::Guard, libc::SYS_poll, [PAGE_AT + POLL, 1, 0, 0, 0, 0]),
        (Stage::Mount, libc::SYS_move_mount, [FILES as u64, nothing, here, files, whole, key]),
        (Stage::Mount, libc::SYS_mount, [kind, target, kind, mount_flags, options, key]),
        (Stage::Mount, libc::SYS_unshare, [libc::CLONE_NEWCGROUP as u64, 0, 0, 0, 0, key]),
    ];
    let calls = calls.iter().take(if in_cgroup { calls.len() } else { calls.len() - 1 });
    page.put(COUNT, calls.len() as u64);
    let mut at = CALLS;
    for &(stage, number, arguments) in calls {
        page.put(at, number as u64);
        for (place, argument) in (1..).zip(arguments) {
            page.put(at + 8 * place, argument);
        }
        page.put(at + 64, stage as u64);
        at += 72;
    }

    let mut image = code().to_vec();
    image.resize(PAGE_BYTES, 0);
    image.extend_from_slice(&page.0);
    image
}

/// How many bytes of orders come before the calls: three words.
const HEAD: u64 = 24;

/// A call that a run makes before it is the program: the stage it belongs to, its number, its arguments,
/// and the most that it may answer.
pub struct Call {
    /// What is being done.
    pub(crate) stage: Stage,
    /// The system call.
    pub number: libc::c_long,
    /// Its arguments; see [`Orders::put`] for pointers.
    pub arguments: [u64; 4],
    /// Errors are more than any result.
    pub most: u64,
}

/// A run's orders while they are written: a head of three words (how many calls there are, and two of the
/// caller's), the calls, and what these point at.
pub struct Orders {
    calls: Vec<u8>,
    rest: Vec<u8>,
    count: u64,
    /// Where the rest begins, as a run sees it.
    rest_at: u64,
}

impl Orders {
    /// Room for `calls` calls.
    #[must_use]
    pub fn new(calls: usize) -> Self {
        let rest_at = ORDERS_AT + HEAD + 72 * calls as u64;
        Self { calls: Vec::new(), rest: Vec::new(), count: 0, rest_at }
    }

    /// Puts `bytes` into the orders: their address in the run.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let at = self.rest_at + self.rest.len() as u64;
        self.rest.extend_from_slice(bytes);
        self.rest.resize(self.rest.len().next_multiple_of(8), 0);
        at
    }

    /// Adds a call.
    pub fn call(&mut self, call: &Call) {
        let [first, second, third, fourth] = call.arguments;
        let words = [call.number as u64, first, second, third, fourth, 0, 0, call.most];
        words.iter().for_each(|word| self.calls.extend_from_slice(&word.to_le_bytes()));
        self.calls.extend_from_slice(&(call.stage as u64).to_le_bytes());
        self.count += 1;
    }

    /// The orders, if they are as many calls as there is room for and not too long.
    #[must_use]
    pub fn finish(self, words: [u64; 2]) -> Option<Vec<u8>> {
        let head = [self.count, words[0], words[1]].map(u64::to_le_bytes).concat();
        let orders = [head, self.calls, self.rest].concat();
        let full = self.rest_at == ORDERS_AT + HEAD + 72 * self.count;
        (full && self.count > 0 && orders.len() as u64 <= ORDERS_SIZE).then_some(orders)
    }
}

/// The page while it is written.
struct Page([u8; PAGE_BYTES]);

impl Page {
    fn byte(&mut self, at: u64, value: u8) {
        let place = usize::try_from(at).ok().and_then(|at| self.0.get_mut(at));
        if let Some(place) = place {
            *place = value;
        }
    }

    fn put(&mut self, at: u64, value: u64) {
        for (place, byte) in (at..).zip(value.to_le_bytes()) {
            self.byte(place, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_its_page_and_the_calls_theirs() {
        assert!(code().len() < PAGE_BYTES);
        assert!(split_offset() < code().len() as u64);
        assert_eq!(image(libc::CLONE_NEWPID, false).len() as u64, 2 * PAGE_SIZE);
        const { assert!(TEXT + 40 < CALLS && CALLS + 5 * 72 < PAGE_SIZE) };
    }
}
