//! What a process may do: users, capabilities, limits.

use super::Result;
use super::raw::syscall;

/// Sets the user, real, effective, saved, to `id`.
pub fn set_user(id: u32) -> Result<()> {
    let id = id as usize;
    // SAFETY: plain integers. Only this process's credentials change, as it has one thread.
    unsafe { syscall(libc::SYS_setresuid, [id, id, id, 0, 0, 0]) }?;
    Ok(())
}

/// Sets the group, real, effective, saved, to `id`.
pub fn set_group(id: u32) -> Result<()> {
    let id = id as usize;
    // SAFETY: as above.
    unsafe { syscall(libc::SYS_setresgid, [id, id, id, 0, 0, 0]) }?;
    Ok(())
}

/// Leaves all supplementary groups.
pub fn leave_groups() -> Result<()> {
    // SAFETY: a length of 0 reads no memory.
    unsafe { syscall(libc::SYS_setgroups, [0; 6]) }?;
    Ok(())
}

/// Limits a resource (`RLIMIT_*`) of this process, soft and hard.
pub fn limit_resource(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = [soft, hard];
    let arguments = [0, resource as usize, limit.as_ptr() as usize, 0, 0, 0];
    // SAFETY: `limit` has the layout of struct rlimit64 and outlives the call; no old limit is asked for.
    unsafe { syscall(libc::SYS_prlimit64, arguments) }?;
    Ok(())
}

/// Empties the bounding set: no exec from here on gains a capability.
pub fn drop_bounding_set() -> Result<()> {
    for capability in 0..64 {
        let arguments = [libc::PR_CAPBSET_DROP as usize, capability, 0, 0, 0, 0];
        // SAFETY: plain integers.
        match unsafe { syscall(libc::SYS_prctl, arguments) } {
            Ok(_) => {}
            Err(super::Errno(libc::EINVAL)) => break, // past the kernel's last capability
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Takes `capability` out of the bounding set.
pub fn drop_from_bounding_set(capability: u32) -> Result<()> {
    let arguments = [libc::PR_CAPBSET_DROP as usize, capability as usize, 0, 0, 0, 0];
    // SAFETY: plain integers.
    unsafe { syscall(libc::SYS_prctl, arguments) }?;
    Ok(())
}

/// Whether exec grants nothing any more and a seccomp filter holds this process.
pub fn is_confined() -> Result<bool> {
    let ask = |option: i32| {
        // SAFETY: neither option takes an argument.
        unsafe { syscall(libc::SYS_prctl, [option as usize, 0, 0, 0, 0, 0]) }
    };
    Ok(ask(libc::PR_GET_NO_NEW_PRIVS)? == 1 && ask(libc::PR_GET_SECCOMP)? == 2)
}

/// The capabilities this process has in effect, as bits.
pub fn effective_capabilities() -> Result<u64> {
    capability_sets().map(|[effective, _, _]| effective)
}

/// Keeps only `keep` (bits) of the permitted, effective and inheritable capabilities.
pub fn keep_capabilities(keep: u64) -> Result<()> {
    let [effective, _, inheritable] = capability_sets()?;
    let keep = keep & effective;
    set_capabilities([keep, keep, keep & inheritable])
}

/// Effective, permitted and inheritable capabilities, as bits.
fn capability_sets() -> Result<[u64; 3]> {
    let header = [LINUX_CAPABILITY_VERSION_3, 0];
    let mut data = [0u32; 6];
    let arguments = [header.as_ptr() as usize, data.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: version 3 reads the header of two u32 and writes two entries of three u32.
    unsafe { syscall(libc::SYS_capget, arguments) }?;
    let [low, high] = [[data[0], data[1], data[2]], [data[3], data[4], data[5]]];
    let join = |index: usize| u64::from(low[index]) | u64::from(high[index]) << 32;
    Ok([join(0), join(1), join(2)])
}

/// The user and the group that this process acts as.
#[must_use]
pub fn user_and_group() -> (u32, u32) {
    // SAFETY: no arguments; these two cannot fail.
    let ask = |number| unsafe { syscall(number, [0; 6]) }.unwrap_or_default();
    let id = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    (id(ask(libc::SYS_geteuid)), id(ask(libc::SYS_getegid)))
}

/// Gives up every capability. For a child about to exec.
pub fn drop_capabilities() -> Result<()> {
    set_capabilities([0; 3])
}

fn set_capabilities(sets: [u64; 3]) -> Result<()> {
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
    let [low, high] = [sets.map(half), sets.map(|bits| half(bits >> 32))];
    let header = [LINUX_CAPABILITY_VERSION_3, 0];
    let data = [low, high];
    let arguments = [header.as_ptr() as usize, data.as_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: version 3 reads the header of two u32 and two entries of three u32.
    unsafe { syscall(libc::SYS_capset, arguments) }?;
    Ok(())
}

const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Makes `keep` (bits), and nothing else, inheritable: a program that root starts by exec has that then,
/// even if the bounding set was emptied meanwhile.
pub fn pass_on_capabilities(keep: u64) -> Result<()> {
    let [effective, permitted, _] = capability_sets()?;
    set_capabilities([effective, permitted, keep & permitted])
}

/// Numbers of the capabilities that the crate speaks of.
pub mod capability {
    /// Change owners of files.
    pub const CHOWN: u32 = 0;
    /// Pass by permissions of files.
    pub const DAC_OVERRIDE: u32 = 1;
    /// Pass by owners of files.
    pub const FOWNER: u32 = 3;
    /// Change groups.
    pub const SETGID: u32 = 6;
    /// Change users.
    pub const SETUID: u32 = 7;
    /// Take capabilities out of the bounding set.
    pub const SETPCAP: u32 = 8;
    /// Namespaces and mounts.
    pub const SYS_ADMIN: u32 = 21;
    /// Raise limits, lower OOM scores.
    pub const SYS_RESOURCE: u32 = 24;
    /// Make device nodes.
    pub const MKNOD: u32 = 27;
}

/// Makes exec never grant anything: set-user-id bits and file capabilities are ignored from here on.
pub fn set_no_new_privileges() -> Result<()> {
    // SAFETY: plain integers.
    unsafe { syscall(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0, 0]) }?;
    Ok(())
}
