//! Starting a child that shares this process's memory while this process waits.

use std::arch::asm;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Result;
use super::raw::{check, int, setup_key, word};

/// The kernel's `struct clone_args`, up to the field for the cgroup.
#[repr(C)]
#[derive(Default)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// The C library's constant of this name is cut to 32 bits.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Memory for a child's stack, made once and used by one child after another.
pub struct Stack(Box<[u8]>);

impl Stack {
    /// A stack of `bytes`, which must leave room for the deepest call of the child's code.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(vec![1; bytes.max(4096)].into_boxed_slice())
    }

    /// Its lowest address and its size, the size cut so that the top is aligned.
    fn extent(&mut self) -> (u64, u64) {
        let base = self.0.as_mut_ptr() as u64;
        let top = (base + self.0.len() as u64) & !63;
        (base, top - base)
    }
}

/// Where the child is put apart from its parent.
#[derive(Clone, Copy, Default)]
pub struct Placement<'a> {
    /// `CLONE_NEW*`: the namespaces that are made for it.
    pub namespaces: i32,
    /// The directory of the cgroup (v2) that it starts in, if not its parent's.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Runs `entry(argument)` in a child that shares this process's memory. Returns the child's process
/// number when it has ended or has become another program by exec; until then this process is suspended.
///
/// The child has `argument` to itself, as the suspended parent cannot look. `entry` must not allocate,
/// lock or panic: the child lives in a copy of nothing. Signals should be blocked by the caller.
pub fn suspended_until_done<T>(
    placement: Placement<'_>,
    stack: &mut Stack,
    entry: fn(&mut T) -> !,
    argument: &mut T,
) -> Result<i32> {
    struct Call<'a, T> {
        entry: fn(&mut T) -> !,
        argument: &'a mut T,
    }
    extern "C" fn begin<T>(call: &mut Call<'_, T>) -> ! {
        (call.entry)(call.argument)
    }

    let mut call = Call { entry, argument };
    let (base, size) = stack.extent();
    let flags = (libc::CLONE_VM | libc::CLONE_VFORK | placement.namespaces) as u32 as u64;
    let mut arguments = Arguments {
        flags,
        exit_signal: libc::SIGCHLD as u64,
        stack: base,
        stack_size: size,
        ..Arguments::default()
    };
    if let Some(cgroup) = placement.cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = word(cgroup.as_raw_fd()) as u64;
    }
    let result: isize;
    // SAFETY: the child runs on `stack`, which nothing else uses while the parent is suspended (VFORK),
    // and leaves this block only by `begin`, which never returns: it ends in exit or exec. So the parent
    // finds its registers as they were (the kernel keeps them) and its frame untouched, except what the
    // child wrote through `call` and `arguments`, which the block is taken to write. `entry` is a
    // safe function, and `argument` is borrowed for it alone until the parent goes on.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const arguments,
            in("rsi") size_of::<Arguments>(),
            in("rdx") 0,
            in("r10") 0,
            in("r8") 0,
            in("r9") setup_key(),
            in("r12") &raw mut call,
            in("r13") begin::<T> as extern "C" fn(&mut Call<'_, T>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    check(result).map(int)
}
