//! Processes: waiting, killing, namespaces, signals, clocks.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::descriptor::own;
use super::raw::{int, setup_key, syscall, word};
use super::{Errno, Result};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It called exit.
    Exited(i32),
    /// A signal ended it.
    Signalled(i32),
}

impl Ending {
    /// Reads a wait status.
    #[must_use]
    pub fn from_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited((status >> 8) & 0xff),
            signal => Self::Signalled(signal),
        }
    }
}

/// A child that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Its process number.
    pub pid: i32,
    /// Its wait status.
    pub status: i32,
    /// Processor time of it and of the children that it waited for.
    pub cpu_time: Duration,
}

/// Waits for a child (`-1`: any) to end.
pub fn wait(pid: i32) -> Result<Ended> {
    let mut status = 0i32;
    let mut usage = [0u64; 18]; // struct rusage: user and system time as two struct timeval, counters
    loop {
        let (status_at, usage_at) = ((&raw mut status) as usize, usage.as_mut_ptr() as usize);
        let arguments = [word(pid), status_at, libc::__WALL as usize, usage_at, 0, 0];
        // SAFETY: both are writable and as long as the kernel's structures.
        match unsafe { syscall(libc::SYS_wait4, arguments) } {
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
            Ok(pid) => {
                let seconds = Duration::from_secs(usage[0] + usage[2]);
                let cpu_time = seconds + Duration::from_micros(usage[1] + usage[3]);
                return Ok(Ended { pid: int(pid), status, cpu_time });
            }
        }
    }
}

/// Waits until a child has ended and leaves it to be waited for: its number, or `None` if there is none.
pub fn wait_without_reaping() -> Result<Option<i32>> {
    let mut told = [0i32; 32]; // siginfo_t: signal, error, code, padding, pid, ...
    let flags = word(libc::WEXITED | libc::WNOWAIT | libc::__WALL);
    let arguments = [libc::P_ALL as usize, 0, told.as_mut_ptr() as usize, flags, 0, 0];
    loop {
        // SAFETY: `told` is as long as the kernel's structure.
        match unsafe { syscall(libc::SYS_waitid, arguments) } {
            Err(Errno(libc::EINTR)) => {}
            Err(Errno(libc::ECHILD)) => return Ok(None),
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(Some(told[4])),
        }
    }
}

/// Makes orphans among this process's descendants its children.
pub fn adopt_orphans() -> Result<()> {
    // SAFETY: plain integers.
    unsafe { syscall(libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER as usize, 1, 0, 0, 0, 0]) }?;
    Ok(())
}

/// Ends this process, with no clean-up of any kind.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: ends the process.
        let _ = unsafe { syscall(libc::SYS_exit_group, [word(status), 0, 0, 0, 0, 0]) };
    }
}

/// Asks that this process be killed when the thread that started it ends.
pub fn die_with_parent() -> Result<()> {
    let arguments = [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0, 0];
    // SAFETY: plain integers.
    unsafe { syscall(libc::SYS_prctl, arguments) }?;
    Ok(())
}

/// Closes this process's memory to other processes of its user.
pub fn close_memory() -> Result<()> {
    // SAFETY: plain integers.
    unsafe { syscall(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 0, 0, 0, 0, 0]) }?;
    Ok(())
}

/// The number of this process's parent; 0 if it is outside this pid namespace.
#[must_use]
pub fn parent() -> i32 {
    // SAFETY: no arguments; cannot fail.
    unsafe { syscall(libc::SYS_getppid, [0; 6]) }.map_or(0, int)
}

/// A descriptor that stands for a process and is readable when it has ended.
pub fn open_pidfd(pid: i32) -> Result<OwnedFd> {
    // SAFETY: plain integers.
    unsafe { syscall(libc::SYS_pidfd_open, [word(pid), 0, 0, 0, 0, 0]) }.map(own)
}

/// Sends `signal` to the process behind `pidfd`; one that has ended already is no error.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let arguments = [word(pidfd.as_raw_fd()), word(signal), 0, 0, 0, 0];
    // SAFETY: no siginfo is passed.
    match unsafe { syscall(libc::SYS_pidfd_send_signal, arguments) } {
        Ok(_) | Err(Errno(libc::ESRCH)) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Kills process `pid`; one that has ended already is no error.
///
/// For processes listed in a cgroup of our own: a pidfd is opened first, so that the number cannot
/// come to mean another process between the look and the kill, and `still_ours` is asked in between.
pub fn kill_checked(pid: i32, still_ours: impl FnOnce() -> bool) -> Result<()> {
    let pidfd = match open_pidfd(pid) {
        Err(Errno(libc::ESRCH)) => return Ok(()),
        other => other?,
    };
    if still_ours() {
        use std::os::fd::AsFd;
        send_signal(pidfd.as_fd(), libc::SIGKILL)?;
    }
    Ok(())
}

/// Moves this process into new namespaces (`CLONE_NEW*`).
pub fn unshare(namespaces: i32) -> Result<()> {
    // SAFETY: only namespace flags are used by the crate; memory and descriptors stay as they are.
    unsafe { syscall(libc::SYS_unshare, [word(namespaces), 0, 0, 0, 0, setup_key()]) }?;
    Ok(())
}

/// Names the host of this uts namespace.
pub fn set_host_name(name: &str) -> Result<()> {
    // SAFETY: `name` is readable for its length.
    unsafe { syscall(libc::SYS_sethostname, [name.as_ptr() as usize, name.len(), 0, 0, 0, 0]) }?;
    Ok(())
}

/// Whether this process's ipc namespace holds no System V object of any kind.
pub fn has_no_ipc_objects() -> Result<bool> {
    const SHM_INFO: usize = 14;
    const MSG_INFO: usize = 12;
    const SEM_INFO: usize = 19;
    // The largest of the three structures, struct shminfo64, has 72 bytes. Each starts with or holds the
    // number of identifiers in use where the constants below say.
    let mut info = [0u32; 32];
    let at = info.as_mut_ptr() as usize;
    // SAFETY: `info` is longer than each of the structures that the kernel writes.
    unsafe {
        syscall(libc::SYS_shmctl, [0, SHM_INFO, at, 0, 0, 0])?;
        let shared_memory = info[0]; // struct shm_info: used_ids
        syscall(libc::SYS_msgctl, [0, MSG_INFO, at, 0, 0, 0])?;
        let queues = info[0]; // struct msginfo: msgpool, which MSG_INFO sets to the number of queues
        syscall(libc::SYS_semctl, [0, 0, SEM_INFO, at, 0, 0])?;
        let semaphores = info[7]; // struct seminfo: semusz, which SEM_INFO sets to the number of sets
        Ok(shared_memory == 0 && queues == 0 && semaphores == 0)
    }
}

/// Makes this process the leader of a process group of its own.
pub fn start_group() -> Result<()> {
    // SAFETY: plain integers.
    unsafe { syscall(libc::SYS_setpgid, [0; 6]) }?;
    Ok(())
}

/// Starts a session of its own: no terminal.
pub fn start_session() -> Result<()> {
    // SAFETY: no arguments.
    unsafe { syscall(libc::SYS_setsid, [0; 6]) }?;
    Ok(())
}

/// Blocks every signal that can be blocked (`true`), or none.
pub fn block_signals(block: bool) -> Result<()> {
    let set: u64 = if block { u64::MAX } else { 0 };
    let arguments =
        [libc::SIG_SETMASK as usize, (&raw const set) as usize, 0, size_of::<u64>(), 0, 0];
    // SAFETY: the kernel's signal set is one u64; no old set is asked for.
    unsafe { syscall(libc::SYS_rt_sigprocmask, arguments) }?;
    Ok(())
}

/// Gives every signal its default action: what is ignored here would stay ignored over exec.
pub fn reset_signals() {
    let default = [0u64; 4]; // struct kernel_sigaction: SIG_DFL, no flags
    for signal in 1..=64 {
        let arguments = [signal, default.as_ptr() as usize, 0, size_of::<u64>(), 0, 0];
        // SAFETY: the structure is read for its 32 bytes. SIGKILL and SIGSTOP answer EINVAL.
        let _ = unsafe { syscall(libc::SYS_rt_sigaction, arguments) };
    }
}

/// Time since an arbitrary start, never set back.
#[must_use]
pub fn monotonic() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

/// Processor time of this process.
#[must_use]
pub fn processor_time() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Processor time of the process `pid`, which may have ended if nobody has waited for it yet.
#[must_use]
pub fn processor_time_of(pid: i32) -> Duration {
    // CPUCLOCK_SCHED of a process: see clock_getcpuclockid(3).
    clock((!pid << 3) | 2)
}

fn clock(id: i32) -> Duration {
    let mut time = [0u64; 2]; // struct timespec
    // SAFETY: `time` has room for the structure.
    let result = unsafe {
        syscall(libc::SYS_clock_gettime, [word(id), time.as_mut_ptr() as usize, 0, 0, 0, 0])
    };
    if result.is_err() {
        return Duration::ZERO; // a process that is no more
    }
    Duration::new(time[0], u32::try_from(time[1]).unwrap_or(0))
}

/// Sixteen bytes from the kernel's random source, as two words.
pub fn random_words() -> Result<[u64; 2]> {
    let mut words = [0u64; 2];
    let arguments = [words.as_mut_ptr() as usize, size_of_val(&words), 0, 0, 0, 0];
    // SAFETY: `words` is writable for its size. So few bytes are never cut short.
    unsafe { syscall(libc::SYS_getrandom, arguments) }?;
    Ok(words)
}
