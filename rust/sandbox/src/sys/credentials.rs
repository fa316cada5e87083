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
    let header = [LINUX_CAPABILITY_VERSION_3, 0];
    let mut data = [0u32; 6];
    let arguments = [header.as_ptr() as usize, data.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: version 3 reads the header of two u32 and writes two entries of three u32.
    unsafe { syscall(libc::SYS_capget, arguments) }?;
    Ok(u64::from(data[0]) | u64::from(data[3]) << 32)
}

/// Keeps only `keep` (bits) of the permitted and effective capabilities; none are inheritable.
pub fn keep_capabilities(keep: u64) -> Result<()> {
    let keep = keep & effective_capabilities()?;
    let (low, high) = (keep & u64::from(u32::MAX), keep >> 32);
    let (low, high) = (u32::try_from(low).unwrap_or(0), u32::try_from(high).unwrap_or(0));
    let header = [LINUX_CAPABILITY_VERSION_3, 0];
    let data = [low, low, 0, high, high, 0]; // effective, permitted, inheritable; twice
    let arguments = [header.as_ptr() as usize, data.as_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: version 3 reads the header of two u32 and two entries of three u32.
    unsafe { syscall(libc::SYS_capset, arguments) }?;
    Ok(())
}

const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Numbers of the capabilities that the crate speaks of.
pub mod capability {
    /// Change owners of files.
    pub const CHOWN: u32 = 0;
    /// Pass by permissions of files.
    pub const DAC_OVERRIDE: u32 = 1;
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
