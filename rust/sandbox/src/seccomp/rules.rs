//! The allow-list. To allow a call, add it to the rule whose reason it shares, or add a rule.
//!
//! What is absent on purpose: io_uring, userfaultfd, bpf, perf_event_open, ptrace, process_vm_*, keyctl,
//! fanotify, name_to_handle_at, kexec, modules, swap, mounts, unshare, setns, chroot, pivot_root,
//! POSIX message queues, vmsplice, syslog, sync of whole file systems, setting of extended attributes,
//! inotify (it would tell which of the host's files other runs open).

/// When a call is let through.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// Whatever its arguments.
    Always,
    /// When the low half of an argument, masked, has one value; else it fails with `errno`.
    Masked {
        /// The argument's place, from 0.
        argument: u8,
        /// The bits that are looked at.
        mask: u32,
        /// What they must be.
        value: u32,
        /// What it fails with.
        errno: i32,
    },
    /// When the low half of an argument is one of a few values; else it fails with `errno`.
    OneOf {
        /// The argument's place, from 0.
        argument: u8,
        /// What it may be.
        values: &'static [u32],
        /// What it fails with.
        errno: i32,
    },
    /// When the spawner makes it, which carries the setup key; else it fails with `errno`.
    SetupKey {
        /// What it fails with.
        errno: i32,
    },
}

/// Calls that are let through for one reason.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Name and number of each.
    pub calls: &'static [(&'static str, u32)],
    /// On which condition.
    pub when: When,
    /// Why programs need them, or why they do no harm.
    pub reason: &'static str,
}

macro_rules! calls {
    ($($name:ident)*) => {
        &[$((stringify!($name), number(libc::$name))),*]
    };
}

#[expect(clippy::cast_possible_truncation, reason = "the numbers of calls are small")]
const fn number(call: libc::c_long) -> u32 {
    call as u32
}

const fn always(calls: &'static [(&'static str, u32)], reason: &'static str) -> Rule {
    Rule { calls, when: When::Always, reason }
}

const fn when(calls: &'static [(&'static str, u32)], when: When, reason: &'static str) -> Rule {
    Rule { calls, when, reason }
}

/// Every kind of namespace that clone can make.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

const FILE_KIND: u32 = libc::S_IFMT;
const FIFO: u32 = libc::S_IFIFO;
const MAP_HUGETLB: u32 = libc::MAP_HUGETLB as u32;
const SHM_HUGETLB: u32 = libc::SHM_HUGETLB as u32;
const AF_UNIX: u32 = libc::AF_UNIX as u32;
const PERSONALITIES: &[u32] = &[0, 0x0004_0000, u32::MAX];

/// TIOCSTI and TIOCLINUX, which type into a terminal, are absent; so is all that devices know.
const IOCTLS: &[u32] = &[
    0x5401, // TCGETS: is it a terminal?
    0x5413, // TIOCGWINSZ
    0x540f, // TIOCGPGRP
    0x541b, // FIONREAD
    0x5421, // FIONBIO
    0x5450, // FIONCLEX
    0x5451, // FIOCLEX
    0x5452, // FIOASYNC
];

const SOCKET_OPTIONS: &[u32] = &[
    2,  // SO_REUSEADDR
    6,  // SO_BROADCAST
    7,  // SO_SNDBUF
    8,  // SO_RCVBUF
    9,  // SO_KEEPALIVE
    13, // SO_LINGER
    15, // SO_REUSEPORT
    16, // SO_PASSCRED
    18, // SO_RCVLOWAT
    20, // SO_RCVTIMEO
    21, // SO_SNDTIMEO
    29, // SO_TIMESTAMP
    42, // SO_PEEK_OFF
];

const PRCTLS: &[u32] = &[
    1,           // PR_SET_PDEATHSIG
    2,           // PR_GET_PDEATHSIG
    3,           // PR_GET_DUMPABLE
    4,           // PR_SET_DUMPABLE
    15,          // PR_SET_NAME
    16,          // PR_GET_NAME
    21,          // PR_GET_SECCOMP
    23,          // PR_CAPBSET_READ
    24,          // PR_CAPBSET_DROP: a container's init empties what is left of the set
    29,          // PR_SET_TIMERSLACK
    30,          // PR_GET_TIMERSLACK
    36,          // PR_SET_CHILD_SUBREAPER
    37,          // PR_GET_CHILD_SUBREAPER
    38,          // PR_SET_NO_NEW_PRIVS
    39,          // PR_GET_NO_NEW_PRIVS
    41,          // PR_SET_THP_DISABLE
    42,          // PR_GET_THP_DISABLE
    0x5356_4d41, // PR_SET_VMA: names of anonymous mappings
];

/// The list.
pub const RULES: &[Rule] = &[
    always(
        calls![
            SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv
            SYS_pwritev SYS_preadv2 SYS_pwritev2 SYS_lseek SYS_close SYS_close_range
        ],
        "reading and writing files, pipes and sockets",
    ),
    always(
        calls![
            SYS_open SYS_openat SYS_openat2 SYS_creat
        ],
        "opening files; what may be opened is decided by the mounts and the user",
    ),
    always(
        calls![
            SYS_stat SYS_fstat SYS_lstat SYS_newfstatat SYS_statx SYS_access SYS_faccessat
            SYS_faccessat2 SYS_readlink SYS_readlinkat SYS_statfs SYS_fstatfs SYS_getdents
            SYS_getdents64 SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr
            SYS_flistxattr
        ],
        "looking at files",
    ),
    always(
        calls![
            SYS_truncate SYS_ftruncate SYS_fallocate SYS_rename SYS_renameat SYS_renameat2
            SYS_mkdir SYS_mkdirat SYS_rmdir SYS_link SYS_linkat SYS_unlink SYS_unlinkat
            SYS_symlink SYS_symlinkat SYS_chmod SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_chown
            SYS_fchown SYS_lchown SYS_fchownat SYS_utime SYS_utimes SYS_utimensat SYS_futimesat
            SYS_umask
        ],
        "changing files of its own",
    ),
    always(
        calls![
            SYS_getcwd SYS_chdir SYS_fchdir
        ],
        "where it is",
    ),
    always(
        calls![
            SYS_flock SYS_fsync SYS_fdatasync SYS_msync SYS_sync_file_range SYS_fadvise64
            SYS_readahead
        ],
        "locks, flushing and reading ahead of single files",
    ),
    always(
        calls![
            SYS_sendfile SYS_copy_file_range SYS_splice SYS_tee
        ],
        "copying between descriptors in the kernel",
    ),
    always(
        calls![
            SYS_dup SYS_dup2 SYS_dup3 SYS_fcntl SYS_pipe SYS_pipe2 SYS_eventfd SYS_eventfd2
        ],
        "descriptors",
    ),
    when(
        calls![SYS_memfd_create],
        When::Masked { argument: 1, mask: libc::MFD_HUGETLB, value: 0, errno: libc::EPERM },
        "files in memory, of ordinary pages: huge ones are charged to no cgroup",
    ),
    always(
        calls![
            SYS_select SYS_pselect6 SYS_poll SYS_ppoll SYS_epoll_create SYS_epoll_create1
            SYS_epoll_ctl SYS_epoll_wait SYS_epoll_pwait SYS_epoll_pwait2
        ],
        "waiting for descriptors",
    ),
    always(
        calls![
            SYS_brk SYS_munmap SYS_mprotect SYS_mremap SYS_madvise SYS_mincore
            SYS_mlock SYS_mlock2 SYS_mlockall SYS_munlock SYS_munlockall SYS_pkey_alloc
            SYS_pkey_free SYS_pkey_mprotect SYS_get_mempolicy
        ],
        "memory",
    ),
    when(
        calls![SYS_mmap],
        When::Masked { argument: 3, mask: MAP_HUGETLB, value: 0, errno: libc::EPERM },
        "memory of ordinary pages: huge ones are charged to no cgroup",
    ),
    always(
        calls![
            SYS_fork SYS_vfork SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4
            SYS_waitid SYS_set_tid_address SYS_gettid SYS_getpid SYS_getppid SYS_pidfd_open
            SYS_pidfd_send_signal
        ],
        "processes and threads; new namespaces are refused by clone's rule",
    ),
    always(
        calls![
            SYS_futex SYS_futex_waitv SYS_set_robust_list SYS_get_robust_list SYS_rseq
            SYS_membarrier SYS_arch_prctl SYS_restart_syscall
        ],
        "thread support of the C library",
    ),
    always(
        calls![
            SYS_setsid SYS_getsid SYS_setpgid SYS_getpgid SYS_getpgrp
        ],
        "sessions and groups of processes",
    ),
    always(
        calls![
            SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid
            SYS_getgroups SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid
            SYS_setresgid SYS_setfsuid SYS_setfsgid SYS_setgroups SYS_capget SYS_capset
        ],
        "who it is; without capabilities the setters change nothing",
    ),
    always(
        calls![
            SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending
            SYS_rt_sigtimedwait SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_rt_sigsuspend
            SYS_sigaltstack SYS_signalfd SYS_signalfd4 SYS_kill SYS_tkill SYS_tgkill SYS_pause
        ],
        "signals, to processes of its own pid namespace",
    ),
    always(
        calls![
            SYS_time SYS_gettimeofday SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep
            SYS_nanosleep SYS_times SYS_alarm SYS_getitimer SYS_setitimer SYS_timer_create
            SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete
            SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime
        ],
        "clocks and timers",
    ),
    always(
        calls![
            SYS_sched_yield SYS_sched_getaffinity SYS_sched_setaffinity SYS_sched_getparam
            SYS_sched_setparam SYS_sched_getscheduler SYS_sched_setscheduler SYS_sched_getattr
            SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_rr_get_interval
            SYS_getcpu SYS_getpriority SYS_setpriority
        ],
        "scheduling within what its cgroup gives it",
    ),
    always(
        calls![
            SYS_getrlimit SYS_setrlimit SYS_getrusage
        ],
        "limits, which it can only lower",
    ),
    always(
        calls![
            SYS_uname SYS_sysinfo
        ],
        "what system this is",
    ),
    always(calls![SYS_getrandom], "randomness"),
    always(
        calls![
            SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_shutdown SYS_getsockname
            SYS_getpeername SYS_getsockopt SYS_sendto SYS_recvfrom SYS_sendmsg
            SYS_recvmsg SYS_sendmmsg SYS_recvmmsg
        ],
        "unix sockets between its own processes; socket's rule refuses other families",
    ),
    when(
        calls![SYS_setsockopt],
        When::OneOf { argument: 2, values: SOCKET_OPTIONS, errno: libc::EPERM },
        "the options that unix sockets have; a filter on a socket is a program in the kernel",
    ),
    always(
        calls![
            SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl
            SYS_msgget SYS_msgsnd SYS_msgrcv SYS_msgctl
        ],
        "System V IPC, in an ipc namespace without objects of any other run",
    ),
    when(
        calls![SYS_prlimit64],
        When::OneOf { argument: 0, values: &[0], errno: libc::EPERM },
        "one's own limits; an ordinary user's run could else have its init ended by one",
    ),
    when(
        calls![SYS_shmget],
        When::Masked { argument: 2, mask: SHM_HUGETLB, value: 0, errno: libc::EPERM },
        "the same, of ordinary pages",
    ),
    when(
        calls![SYS_clone],
        When::Masked { argument: 0, mask: NAMESPACES, value: 0, errno: libc::EPERM },
        "threads and processes, in no new namespace",
    ),
    when(
        calls![SYS_clone3],
        When::SetupKey { errno: libc::ENOSYS },
        "its flags lie in memory, where a filter cannot look; libraries fall back to clone",
    ),
    when(
        calls![SYS_socket],
        When::OneOf { argument: 0, values: &[AF_UNIX], errno: libc::EAFNOSUPPORT },
        "unix sockets only: there is no network to reach",
    ),
    when(
        calls![SYS_socketpair],
        When::OneOf { argument: 0, values: &[AF_UNIX], errno: libc::EAFNOSUPPORT },
        "pipes in both directions",
    ),
    when(
        calls![SYS_ioctl],
        When::OneOf { argument: 1, values: IOCTLS, errno: libc::ENOTTY },
        "the requests that programs ask of files, pipes and supposed terminals",
    ),
    when(
        calls![SYS_prctl],
        When::OneOf { argument: 0, values: PRCTLS, errno: libc::EPERM },
        "names of threads and other harmless settings",
    ),
    when(
        calls![SYS_personality],
        When::OneOf { argument: 0, values: PERSONALITIES, errno: libc::EPERM },
        "asking for it, and switching address randomisation off for debuggers",
    ),
    when(
        calls![SYS_mknod],
        When::Masked { argument: 1, mask: FILE_KIND, value: FIFO, errno: libc::EPERM },
        "named pipes, never devices",
    ),
    when(
        calls![SYS_mknodat],
        When::Masked { argument: 2, mask: FILE_KIND, value: FIFO, errno: libc::EPERM },
        "named pipes, never devices",
    ),
    when(
        calls![SYS_mount SYS_fsopen SYS_fsconfig SYS_fsmount SYS_move_mount SYS_open_tree SYS_pivot_root SYS_umount2 SYS_unshare],
        When::SetupKey { errno: libc::EPERM },
        "the spawner mounts the run's /proc, tmpfs and writable root, and renews its ipc namespace",
    ),
];
