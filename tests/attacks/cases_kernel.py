"""Attacks on the kernel's interfaces: system calls that no program of a task needs."""

from __future__ import annotations

from attacks.frame import Attack, c, python


def killed(name: str, tries: str, source: str) -> Attack:
    return Attack(
        name=name,
        tries=tries,
        must_hold="the first such call kills the program",
        language="c",
        source=c(source),
        verdicts=("signalled",),
        says=b"trying",
        holds=lambda result: result.signal == 31,
    )


CASES = [
    killed(
        "the 32 bit door",
        "system calls by int 0x80, whose numbers mean other calls",
        """
int main(void) {
  int result;
  puts("trying"); fflush(stdout);
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(20));
  printf("BREACH: getpid by int 0x80 gave %d\\n", result);
}
""",
    ),
    killed(
        "the x32 door",
        "system calls by x32 numbers",
        """
int main(void) {
  puts("trying"); fflush(stdout);
  printf("BREACH: x32 getpid gave %ld\\n", syscall(0x40000000 + SYS_getpid));
}
""",
    ),
    Attack(
        name="mounting",
        tries="a tmpfs, a bind, / again but writable, /proc off, and mounts that travel by descriptor",
        source=python("""
refused("mount tmpfs", 165, b"none", b"/tmp", b"tmpfs", 0, None)
refused("bind /", 165, b"/", b"/tmp", None, 4096, None)
refused("remount / writable", 165, None, b"/", None, 32, None)
refused("umount /proc", 166, b"/proc", 2)
refused("fsopen", 430, b"tmpfs", 0)
refused("fspick", 433, -100, b"/", 0)
refused("open_tree clone", 428, -100, b"/", 1)
refused("move_mount", 429, -100, b"/tmp", -100, b"/usr", 0)
refused("mount_setattr", 442, -100, b"/", 0, bytes(32), 32)
refused("statmount", 457, bytes(64), bytes(512), 512, 0)
"""),
        says=b"held: mount_setattr",
    ),
    Attack(
        name="new namespaces",
        tries="unshare, clone and clone3 for any namespace, the user's above all; setns into init's",
        source=python("""
import struct
for name, flag in [("user", 0x10000000), ("mount", 0x20000), ("pid", 0x20000000),
                   ("net", 0x40000000), ("ipc", 0x8000000), ("uts", 0x4000000),
                   ("cgroup", 0x2000000)]:
    arguments = struct.pack("11Q", flag, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
    refused(f"unshare {name}", 272, flag)
    refused(f"unshare user and {name}", 272, flag | 0x10000000)
    refused(f"clone {name}", 56, flag | 17, 0, 0, 0, 0)
    refused(f"clone3 {name}", 435, arguments, 88)
refused("setns", 308, os.open("/proc/self/ns/mnt", 0), 0)
"""),
        says=b"held: setns",
    ),
    Attack(
        name="flags of clone3",
        tries="a chosen process number, another cgroup, cleared handlers, a thread: by clone3",
        must_hold="clone3 is not there at all, since a filter cannot look at its flags",
        language="c",
        source=c("""
struct arguments { uint64_t flags, pidfd, child, parent, signal, stack, size, tls, ids, count, cgroup; };
static long try(struct arguments a) {
  long pid = syscall(SYS_clone3, &a, sizeof a);
  if (pid == 0) _exit(0);
  return pid;
}
int main(void) {
  int id = 1234;
  refused("plain", try((struct arguments){.signal = SIGCHLD}));
  refused("a number", try((struct arguments){.signal = SIGCHLD, .ids = (uintptr_t)&id, .count = 1}));
  int fd = open("/tmp", O_PATH);
  refused("a cgroup", try((struct arguments){.flags = 1ull << 33, .signal = SIGCHLD, .cgroup = fd}));
  refused("clear handlers", try((struct arguments){.flags = 1ull << 32, .signal = SIGCHLD}));
  refused("the key of zero", syscall(SYS_clone3, &(struct arguments){.signal = SIGCHLD}, 88, 0, 0, 0, 0));
}
"""),
        says=b"held: the key of zero",
    ),
    Attack(
        name="guessing the setup key",
        tries="calls of the spawner with likely values of the secret that lets them through",
        must_hold="no register or memory of the program holds it",
        language="c",
        source=c("""
extern char **environ;
#include <sys/auxv.h>
int main(int count, char **words) {
  (void)count;
  uint64_t *at = (uint64_t *)((uintptr_t)words & ~7ul);
  long seen = 0;
  /* The stack above main: arguments, environment, the auxiliary vector, the kernel's random bytes. */
  uint64_t *end = (uint64_t *)(getauxval(AT_RANDOM) + 16);
  for (; at < end; at++, seen++)
    if (syscall(SYS_unshare, 0, 0, 0, 0, 0, *at) == 0) return puts("BREACH: found"), 0;
  for (uint64_t key = 0; key < 200000; key++, seen++)
    if (syscall(SYS_unshare, 0, 0, 0, 0, 0, key) == 0) return puts("BREACH: found"), 0;
  puts("held");
}
"""),
        says=b"held",
    ),
    Attack(
        name="tracing",
        tries="ptrace of init, of a child, and to be traced",
        source=python("""
refused("attach to init", 101, 16, 1, 0, 0)
refused("seize init", 101, 0x4206, 1, 0, 0)
refused("be traced", 101, 0, 0, 0, 0)
child = os.fork()
if child == 0:
    time.sleep(9)
refused("attach to its child", 101, 16, child, 0, 0)
os.kill(child, 9)
"""),
        says=b"held: attach to its child",
    ),
    Attack(
        name="other processes' memory",
        tries="process_vm_readv and writev, process_madvise, kcmp, pidfd_getfd on init and on itself",
        source=python("""
import struct
memory = ctypes.create_string_buffer(64)
vector = struct.pack("QQ", ctypes.addressof(memory), 64)
for pid in (1, os.getpid()):
    refused(f"process_vm_readv {pid}", 310, pid, vector, 1, vector, 1, 0)
    refused(f"process_vm_writev {pid}", 311, pid, vector, 1, vector, 1, 0)
    refused(f"kcmp {pid}", 312, pid, os.getpid(), 0, 0, 0)
    fd = os.pidfd_open(pid)
    refused(f"pidfd_getfd {pid}", 438, fd, 0, 0)
    refused(f"process_madvise {pid}", 440, fd, vector, 1, 20, 0)
    refused(f"process_mrelease {pid}", 448, fd, 0)
"""),
        says=b"held: process_mrelease",
    ),
    Attack(
        name="keys",
        tries="the kernel's keyrings, which are shared by all who inherit the session's",
        source=python("""
refused("keyctl: the session's keyring", 250, 0, -3, 1)
refused("keyctl: join a session", 250, 1, None)
refused("add_key", 248, b"user", b"a", b"b", 1, -3)
refused("request_key", 249, b"user", b"a", b"b", -3)
"""),
        says=b"held: request_key",
    ),
    Attack(
        name="programs in the kernel",
        tries="bpf: a map and a filter; and a classic filter on a socket, which needs no right",
        language="c",
        source=c("""
#include <linux/bpf.h>
#include <linux/filter.h>
int main(void) {
  union bpf_attr map = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
  refused("bpf map", syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map));
  struct bpf_insn code[] = {{.code = 0xb7}, {.code = 0x95}};
  union bpf_attr load = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insns = (uintptr_t)code,
                         .insn_cnt = 2, .license = (uintptr_t)"GPL"};
  refused("bpf program", syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load));
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends)) return 1;
  struct sock_filter all = {.code = BPF_RET | BPF_K, .k = 1};
  struct sock_fprog filter = {1, &all};
  refused("a socket's filter", setsockopt(ends[0], SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter));
}
"""),
        says=b"held: a socket's filter",
    ),
    Attack(
        name="a filter of its own",
        tries="seccomp, to add a filter, to be notified of calls, or to make children misbehave",
        source=python("""
import struct
code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7fff0000))
program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(code))
refused("seccomp", 317, 1, 0, program)
refused("seccomp listener", 317, 1, 8, program)
refused("prctl", 157, 22, 2, program)
"""),
        says=b"held: prctl",
    ),
    Attack(
        name="performance counters",
        tries="perf_event_open on itself and on all of a processor",
        source=python("""
import struct
event = struct.pack("IIQ", 1, 128, 1).ljust(128, bytes(1))
refused("its own", 298, event, 0, -1, -1, 0)
refused("a processor's", 298, event, -1, 0, -1, 0)
"""),
        says=b"held: a processor's",
    ),
    Attack(
        name="page faults of its own",
        tries="userfaultfd, by call and by device, to hold the kernel in the middle of a copy",
        source=python("""
refused("userfaultfd", 323, 0x80800)
refused("userfaultfd, user mode only", 323, 1)
attempt("its device", lambda: os.open("/dev/userfaultfd", os.O_RDWR))
"""),
        says=b"held: its device",
    ),
    Attack(
        name="io_uring",
        tries="a ring, by which calls are made that no filter sees",
        source=python("""
refused("io_uring_setup", 425, 8, bytes(120))
refused("io_uring_enter", 426, 0, 0, 0, 0, None)
refused("io_uring_register", 427, -1, 0, None, 0)
refused("io_setup", 206, 8, bytes(8))
"""),
        says=b"held: io_setup",
    ),
    Attack(
        name="another kernel",
        tries="kexec, modules, reboot, swap",
        source=python("""
refused("kexec_load", 246, 0, 0, None, 0)
refused("kexec_file_load", 320, 0, -1, 0, None, 8)
refused("init_module", 175, b"x", 1, b"")
refused("finit_module", 313, 0, b"", 0)
refused("delete_module", 176, b"x", 0)
refused("reboot", 169, 0xfee1dead, 672274793, 0, None)
refused("swapon", 167, b"/tmp/x", 0)
refused("swapoff", 168, b"/tmp/x")
"""),
        says=b"held: swapoff",
    ),
    Attack(
        name="typing into a terminal",
        tries="TIOCSTI and TIOCLINUX on whatever descriptors it has, also with the upper half set",
        must_hold="no ioctl but harmless ones reaches a file",
        source=python("""
for fd in range(3):
    for request in (0x5412, 0x541C, 0x5412 | 7 << 32, 0x5401 | 1 << 16):
        try:
            print("BREACH", call(16, fd, request, b"x"))
        except OSError as error:
            print("held" if error.errno == errno.ENOTTY else "BREACH", error)
attempt("a terminal of its own", lambda: os.openpty())
attempt("the terminal", lambda: os.open("/dev/tty", os.O_RDWR))
"""),
        says=b"held: the terminal",
    ),
    Attack(
        name="files by handle",
        tries="name_to_handle_at and open_by_handle_at, which pass by every mount",
        source=python("""
handle = (8).to_bytes(4, "little") + bytes(200)
refused("name_to_handle_at", 303, -100, b"/usr", handle, bytes(8), 0)
refused("open_by_handle_at", 304, -100, handle, 0)
refused("fanotify_init", 300, 0, 0)
refused("fanotify_init, without rights", 300, 0x200, 0)
"""),
        says=b"held: fanotify_init, without",
    ),
    Attack(
        name="watching the host's files",
        tries="inotify on the programs and libraries that others run at the same time",
        must_hold="no run learns what is opened elsewhere",
        source=python("""
refused("inotify_init1", 294, 0)
refused("inotify_init", 253)
refused("inotify_add_watch", 254, 0, b"/usr/bin", 0x20)
"""),
        says=b"held: inotify_add_watch",
    ),
    Attack(
        name="the rest of the kernel",
        tries="the log, accounting, quotas, ports, segments, names, memory policy, obsolete calls",
        source=python("""
for name, number, arguments in [
    ("syslog", 103, (3, bytes(16), 16)),
    ("acct", 163, (None,)),
    ("quotactl", 179, (0, None, 0, None)),
    ("iopl", 172, (3,)),
    ("ioperm", 173, (0x80, 1, 1)),
    ("modify_ldt", 154, (0, bytes(16), 16)),
    ("sethostname", 170, (b"x", 1)),
    ("setdomainname", 171, (b"x", 1)),
    ("vmsplice", 278, (1, None, 0, 0)),
    ("mbind", 237, (0, 0, 0, None, 0, 0)),
    ("set_mempolicy", 238, (0, None, 0)),
    ("migrate_pages", 256, (0, 0, None, None)),
    ("move_pages", 279, (0, 0, None, None, None, 0)),
    ("remap_file_pages", 216, (0, 0, 0, 0, 0)),
    ("lookup_dcookie", 212, (0, None, 0)),
    ("sysfs", 139, (3,)),
    ("uselib", 134, (b"/usr/lib/x",)),
    ("ustat", 136, (1, bytes(64))),
    ("vhangup", 153, ()),
    ("sync", 162, ()),
    ("syncfs", 306, (0,)),
    ("mq_open", 240, (b"q", 0o102, 0o600, None)),
    ("memfd_secret", 447, (0,)),
    ("landlock_create_ruleset", 444, (None, 0, 1)),
    ("setxattr", 188, (b"/tmp/main.py", b"user.a", b"b", 1, 0)),
    ("personality", 135, (0x0400000,)),
    ("of the future", 900, ()),
]:
    refused(name, number, *arguments)
"""),
        says=b"held: of the future",
    ),
]
