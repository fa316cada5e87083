//! Loading a seccomp filter.

use super::Result;
use super::raw::syscall;

/// One instruction of classic BPF.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u16,
    /// How many instructions to skip when the test is true.
    pub jump_true: u8,
    /// How many instructions to skip when it is false.
    pub jump_false: u8,
    /// The constant.
    pub constant: u32,
}

/// Puts this process and all that it starts from here on under `program`. It cannot be undone.
pub fn load(program: &[Instruction]) -> Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const Instruction,
    }
    let length = u16::try_from(program.len()).map_err(|_| super::Errno(libc::E2BIG))?;
    let program = Program { length, filter: program.as_ptr() };
    let arguments =
        [libc::SECCOMP_SET_MODE_FILTER as usize, 0, (&raw const program) as usize, 0, 0, 0];
    // SAFETY: the layout is struct sock_fprog's; the instructions outlive the call, and the kernel
    // checks the program before it takes it.
    unsafe { syscall(libc::SYS_seccomp, arguments) }?;
    Ok(())
}
