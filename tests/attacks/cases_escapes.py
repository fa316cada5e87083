"""Attacks on the walls: namespaces, mounts, devices, the host's files, the spawner."""

from __future__ import annotations

from attacks.frame import Attack, python

CASES = [
    Attack(
        name="abort is a signal of its own",
        tries="to be seen as anything but a crash",
        source="import os; os.abort()",
        verdicts=("signalled",),
        holds=lambda result: result.signal == 6,
    ),
    Attack(
        name="killing itself",
        tries="to look as if a limit had ended it",
        source="import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        verdicts=("signalled",),
        holds=lambda result: result.signal == 9,
    ),
    Attack(
        name="killing init and everyone",
        tries="to end the run's init, or whatever else it can see",
        source=python("""
import signal
attempt("kill init", lambda: os.kill(1, signal.SIGKILL))
attempt("stop init", lambda: os.kill(1, signal.SIGSTOP))
attempt("kill all", lambda: os.kill(-1, 0))
print("alive, with parent", os.getppid())
"""),
        says=b"alive, with parent 1",
    ),
    Attack(
        name="mounting",
        tries="a tmpfs, a bind, /proc again, and the mount API by descriptors",
        source=python("""
attempt("mount tmpfs", lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, None))
attempt("bind /", lambda: call(165, b"/", b"/tmp", None, 4096, None))
attempt("remount / writable", lambda: call(165, None, b"/", None, 32, None))
attempt("umount /proc", lambda: call(166, b"/proc", 2))
attempt("fsopen", lambda: call(430, b"tmpfs", 0))
attempt("open_tree clone", lambda: call(428, -100, b"/", 1))
attempt("move_mount", lambda: call(429, -100, b"/tmp", -100, b"/usr", 0))
attempt("mount_setattr", lambda: call(442, -100, b"/", 0, bytes(32), 32))
"""),
        says=b"held: mount_setattr",
    ),
    Attack(
        name="new namespaces",
        tries="unshare, setns, clone and clone3 for any namespace, the user's above all",
        source=python("""
import struct
for name, flag in [("user", 0x10000000), ("mount", 0x20000), ("pid", 0x20000000),
                   ("net", 0x40000000), ("ipc", 0x8000000), ("uts", 0x4000000),
                   ("cgroup", 0x2000000)]:
    arguments = struct.pack("11Q", flag, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
    attempt(f"unshare {name}", lambda: call(272, flag))
    attempt(f"clone {name}", lambda: call(56, flag | 17, 0, 0, 0, 0) or os._exit(0))
    attempt(f"clone3 {name}", lambda: call(435, arguments, 88) or os._exit(0))
attempt("setns", lambda: call(308, os.open("/proc/self/ns/mnt", 0), 0))
"""),
        says=b"held: setns",
    ),
    Attack(
        name="another root",
        tries="chroot and pivot_root",
        source=python("""
os.mkdir("/tmp/root")
attempt("chroot", lambda: os.chroot("/tmp/root"))
attempt("pivot_root", lambda: call(155, b"/tmp/root", b"/tmp/root"))
"""),
        says=b"held: pivot_root",
    ),
    Attack(
        name="device nodes",
        tries="to make the host's disk and memory as devices",
        source=python("""
import stat
attempt("mknod disk", lambda: os.mknod("/tmp/disk", 0o666 | stat.S_IFBLK, os.makedev(254, 0)))
attempt("mknod kmem", lambda: os.mknod("/tmp/mem", 0o666 | stat.S_IFCHR, os.makedev(1, 1)))
print("devices:", sorted(os.listdir("/dev")))
"""),
        says=b"'full', 'null', 'random', 'shm', 'stderr', 'stdin', 'stdout', 'urandom', 'zero'",
    ),
    Attack(
        name="writing where it should not",
        tries="the root, /usr, /etc, /dev, /proc, and its own limits there",
        source=python("""
for path in ["/x", "/usr/x", "/usr/bin/x", "/etc/passwd", "/etc/x", "/dev/x", "/proc/sysrq-trigger",
             "/proc/sys/kernel/core_pattern", "/proc/self/oom_score_adj",
             "/proc/self/coredump_filter",
             "/proc/1/oom_score_adj", "/proc/self/uid_map", "/proc/self/mem", "/proc/1/mem",
             "/sys/fs/cgroup/memory.max", "/sys/kernel/uevent_helper"]:
    def write(path=path):
        with open(path, "r+b" if path.endswith("mem") else "w") as file:
            return file
    if path != "/proc/self/mem":
        attempt("write " + path, write)
attempt("chmod /usr/bin", lambda: os.chmod("/usr/bin", 0o777))
"""),
        says=b"held: chmod /usr/bin",
    ),
    Attack(
        name="reading the host",
        tries="files, processes and settings that are none of its business",
        source=python("""
for path in ["/root", "/home", "/etc/shadow", "/var", "/run", "/sys", "/boot", "/proc/1/environ",
             "/proc/1/root", "/proc/1/maps", "/proc/kcore", "/proc/kallsyms", "/proc/cmdline",
             "/proc/mounts.host", "/proc/sys", "/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/tty"]:
    def look(path=path):
        return os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(64)
    attempt("look at " + path, look)
print("processes:", [name for name in os.listdir("/proc") if name.isdigit()])
"""),
        says=b"processes: ['2']",
    ),
    Attack(
        name="other processes' memory",
        tries="ptrace, process_vm_readv, kcmp, pidfd_getfd on init",
        source=python("""
attempt("ptrace attach init", lambda: call(101, 16, 1, 0, 0))
attempt("ptrace traceme", lambda: call(101, 0, 0, 0, 0))
attempt("process_vm_readv", lambda: call(310, 1, None, 0, None, 0, 0))
attempt("kcmp", lambda: call(312, 1, os.getpid(), 0, 0, 0))
attempt("pidfd_getfd", lambda: call(438, os.pidfd_open(1), 0, 0))
"""),
        says=b"held: pidfd_getfd",
    ),
    Attack(
        name="kernel interfaces",
        tries="bpf, perf, userfaultfd, io_uring, keyctl, kexec, modules, the log, handles",
        source=python("""
import struct
for name, number, arguments in [
    ("bpf", 321, (0, bytes(128), 128)),
    ("perf_event_open", 298, (bytes(128), 0, -1, -1, 0)),
    ("userfaultfd", 323, (0,)),
    ("io_uring_setup", 425, (8, bytes(256))),
    ("keyctl", 250, (0, -3, 0)),
    ("add_key", 248, (b"user", b"a", b"b", 1, -3)),
    ("kexec_load", 246, (0, 0, None, 0)),
    ("init_module", 175, (b"", 0, b"")),
    ("syslog", 103, (3, bytes(16), 16)),
    ("swapon", 167, (b"/x", 0)),
    ("name_to_handle_at", 303, (-100, b"/", bytes(256), bytes(8), 0)),
    ("reboot", 169, (0, 0, 0, None)),
    ("open_by_handle_at", 304, (-100, bytes(256), 0)),
    ("acct", 163, (None,)),
    ("quotactl", 179, (0, None, 0, None)),
    ("fanotify_init", 300, (0, 0)),
    ("settimeofday", 164, (bytes(16), None)),
    ("iopl", 172, (3,)),
    ("modify_ldt", 154, (1, bytes(16), 16)),
    ("sethostname", 170, (b"x", 1)),
    ("vmsplice", 278, (1, None, 0, 0)),
]:
    attempt(name, lambda: call(number, *arguments))
"""),
        says=b"held: vmsplice",
    ),
    Attack(
        name="the 32 bit door",
        tries="system calls by int 0x80, whose numbers mean other calls",
        language="c",
        source="""
#include <stdio.h>
int main(void) {
  int result;
  puts("trying"); fflush(stdout);
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(20));
  printf("BREACH: getpid by int 0x80 gave %d\\n", result);
}
""",
        verdicts=("signalled",),
        says=b"trying",
    ),
    Attack(
        name="the x32 door",
        tries="system calls by x32 numbers",
        language="c",
        source="""
#include <stdio.h>
#include <unistd.h>
#include <sys/syscall.h>
int main(void) {
  puts("trying"); fflush(stdout);
  printf("BREACH: x32 getpid gave %ld\\n", syscall(0x40000000 + SYS_getpid));
}
""",
        verdicts=("signalled",),
        says=b"trying",
    ),
    Attack(
        name="the network",
        tries="sockets of any family but unix, and the services on the host's loopback",
        source=python("""
import socket
for family in range(1, 46):
    if family != socket.AF_UNIX:
        attempt(f"family {family}", lambda: socket.socket(family, socket.SOCK_DGRAM))
        attempt(f"raw family {family}", lambda: socket.socket(family, socket.SOCK_RAW))
attempt("connect to the host", lambda: socket.create_connection(("127.0.0.1", 22), 1))
"""),
        says=b"held: connect to the host",
    ),
    Attack(
        name="links as output files",
        tries="to have the host's files fetched for it",
        source=python("""
os.symlink("/etc/passwd", "absolute")
os.symlink("../../../../etc/passwd", "relative")
os.symlink("/", "directory")
os.mkfifo("pipe")
os.symlink("/proc/self/environ", "magic")
print("laid")
"""),
        says=b"laid",
        fetch=("absolute", "relative", "directory/etc/passwd", "pipe", "magic"),
        holds=lambda result: result.files == {} and len(result.refused_files) == 5,
    ),
]
