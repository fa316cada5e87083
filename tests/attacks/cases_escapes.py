"""Attacks on the walls: the root, devices, /proc and the host's files."""

from __future__ import annotations

from attacks.frame import Attack, c, python

CASES = [
    Attack(
        name="another root",
        tries="chroot and pivot_root",
        source=python("""
os.mkdir("/tmp/root")
refused("chroot", 161, b"/tmp/root")
refused("pivot_root", 155, b"/tmp/root", b"/tmp/root")
"""),
        says=b"held: pivot_root",
    ),
    Attack(
        name="out of a root by a descriptor",
        tries="the old way: keep a directory open, chroot below it, leave by fchdir and ..",
        must_hold="it arrives at its own root, whichever way it goes up",
        source=python("""
here = os.stat("/")
above = os.open("/", os.O_RDONLY)
os.mkdir("/tmp/jail")
try:
    os.chroot("/tmp/jail")
except OSError as error:
    print("held: chroot ->", error)
os.fchdir(above)
for _ in range(64):
    os.chdir("..")
if (os.stat(".").st_ino, os.stat(".").st_dev) != (here.st_ino, here.st_dev):
    print("BREACH: above the root", os.listdir("."))
for way in ["/proc/self/root/../..", "/proc/self/cwd/../../..", "/..", "/proc/self/fd/%d/.." % above]:
    seen = sorted(os.listdir(way))
    if seen != sorted(os.listdir("/")):
        print("BREACH:", way, seen)
attempt("the root of init", lambda: os.listdir("/proc/1/root"))
attempt("where init is", lambda: os.listdir("/proc/1/cwd"))
"""),
        says=b"held: where init is",
    ),
    Attack(
        name="device nodes",
        tries="to make the host's disk and memory as devices",
        must_hold="nothing but named pipes is made, and /dev has nothing more than it needs",
        source=python("""
import stat
for name, kind, device in [("disk", stat.S_IFBLK, (254, 0)), ("mem", stat.S_IFCHR, (1, 1)),
                           ("null", stat.S_IFCHR, (1, 3)), ("kmsg", stat.S_IFCHR, (1, 11))]:
    refused(name, 133, b"/tmp/" + name.encode(), kind | 0o666, os.makedev(*device))
    refused(name, 259, -100, b"/tmp/" + name.encode(), kind | 0o666, os.makedev(*device))
for name in os.listdir("/dev"):
    if name not in ("fd full null random shm stderr stdin stdout urandom zero ptmx pts console tty"
                    " mqueue core").split():
        print("BREACH:", name)
print("looked")
"""),
        says=b"looked",
    ),
    Attack(
        name="writing where it should not",
        tries="the root, /usr, /etc, /dev and directories of the host that are bound",
        source=python("""
for path in ["/x", "/usr/x", "/usr/bin/x", "/usr/lib/x", "/etc/passwd", "/etc/x", "/dev/x", "/bin/x"]:
    attempt("write " + path, lambda: open(path, "w"))
attempt("mkdir", lambda: os.mkdir("/usr/x"))
attempt("rename", lambda: os.rename("/usr/bin", "/usr/nib"))
attempt("remove", lambda: os.unlink("/usr/bin/env"))
attempt("chmod /usr/bin", lambda: os.chmod("/usr/bin", 0o777))
attempt("chown /usr/bin", lambda: os.chown("/usr/bin", os.getuid(), -1))
attempt("touch /usr/bin", lambda: os.utime("/usr/bin"))
attempt("truncate", lambda: os.truncate("/usr/bin/env", 0))
"""),
        says=b"held: truncate",
    ),
    Attack(
        name="writing to the kernel",
        tries="sysrq-trigger, settings, its own limits and identity in /proc, /sys, cgroupfs",
        source=python("""
for path in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname",
             "/proc/sys/vm/drop_caches", "/proc/sys/kernel/ns_last_pid", "/proc/self/coredump_filter",
             "/proc/self/uid_map", "/proc/self/setgroups", "/proc/self/attr/exec",
             "/proc/self/timerslack_ns", "/proc/self/clear_refs", "/proc/self/loginuid",
             "/proc/kcore", "/sys/kernel/uevent_helper", "/sys/power/state",
             "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cgroup.procs",
             "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/freezer/tasks"]:
    attempt("write " + path, lambda: open(path, "w"))
attempt("list cgroups", lambda: os.listdir("/sys/fs/cgroup"))
"""),
        says=b"held: list cgroups",
    ),
    Attack(
        name="its place when memory is short",
        tries="to lower its oom_score_adj, so that others are killed in its place, then to use it all",
        must_hold="the file cannot be written; the run is killed and nobody else",
        source=python("""
for path in ["/proc/self/oom_score_adj", "/proc/self/oom_adj", "/proc/1/oom_score_adj"]:
    attempt("write " + path, lambda: open(path, "w"))
print("score", open("/proc/self/oom_score_adj").read(), flush=True)
held = []
while True:
    held.append(bytearray(1 << 20))
"""),
        verdicts=("memory_limit",),
        says=b"score 1000",
    ),
    Attack(
        name="memory through /proc",
        tries="its own read-only memory, init's, and a child's, by /proc/PID/mem",
        source=python("""
attempt("its own, to write", lambda: os.open("/proc/self/mem", os.O_RDWR))
attempt("init's, to read", lambda: os.open("/proc/1/mem", os.O_RDONLY))
attempt("init's, to write", lambda: os.open("/proc/1/mem", os.O_RDWR))
child = os.fork()
if child == 0:
    time.sleep(9)
attempt("a child's, to write", lambda: os.open(f"/proc/{child}/mem", os.O_RDWR))
os.kill(child, 9)
"""),
        says=b"held: a child's",
    ),
    Attack(
        name="init in /proc",
        tries="what /proc tells of the process that watches over the run",
        source=python("""
for name in ["environ", "maps", "root", "cwd", "exe", "fd", "fdinfo", "mem", "stack", "syscall",
             "cmdline", "mountinfo", "ns", "map_files", "auxv", "io", "status", "stat"]:
    path = "/proc/1/" + name
    attempt(name, lambda: os.readlink(path) if name in ("root", "cwd", "exe") else
            os.listdir(path) if name in ("fd", "fdinfo", "ns", "map_files") else open(path).read())
"""),
        says=b"held: stat",
    ),
    Attack(
        name="reading the host",
        tries="files, processes and settings that are none of its business",
        source=python("""
for path in ["/root", "/home", "/etc/shadow", "/etc/ssh", "/var", "/run", "/sys", "/boot", "/mnt",
             "/proc/kcore", "/proc/kallsyms", "/proc/cmdline", "/proc/modules", "/proc/sys",
             "/proc/net/tcp", "/proc/keys", "/proc/kmsg", "/proc/timer_list", "/proc/sched_debug",
             "/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/fuse", "/dev/kvm",
             "/dev/net/tun", "/run/docker.sock", "/var/run/docker.sock", "/etc/machine-id"]:
    def look():
        return os.listdir(path)[0] if os.path.isdir(path) else open(path, "rb").read(64)[0]
    try:
        print("BREACH:", path, look())
    except (OSError, IndexError) as error:
        print("held:", path, error)
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
if others not in ([], ["1"]):
    print("BREACH: processes", others)
print("looked")
"""),
        says=b"looked",
    ),
    Attack(
        name="files of set users",
        tries="programs of the host that run as root, and a copy of the shell with the bit set",
        must_hold="no exec raises anything",
        language="c",
        source=c("""
#include <dirent.h>
#include <sys/prctl.h>
#include <sys/statvfs.h>
int main(void) {
  static const char *const folders[] = {"/usr/bin", "/usr/sbin", "/usr/lib"};
  struct statvfs system;
  for (int i = 0; i < 3; i++) {
    if (statvfs(folders[i], &system) == 0 && !(system.f_flag & ST_NOSUID))
      printf("BREACH: %s honours set-user-id bits\\n", folders[i]);
  }
  if (statvfs("/tmp", &system) == 0 && !(system.f_flag & ST_NOSUID)) puts("BREACH: /tmp");
  if (!prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)) puts("BREACH: exec may raise privileges");
  /* su, with nobody's help, says what it thinks of who called it. */
  pid_t child = fork();
  if (child == 0) { execl("/usr/bin/su", "su", "-c", "echo BREACH", (char *)0); _exit(1); }
  waitpid(child, 0, 0);
  child = fork();
  if (child == 0) { execl("/usr/bin/newgrp", "newgrp", (char *)0); _exit(1); }
  waitpid(child, 0, 0);
  if (setuid(0) == 0 || setgid(0) == 0 || setresuid(0, 0, 0) == 0) puts("BREACH: root");
  puts("looked");
}
"""),
        says=b"looked",
    ),
    Attack(
        name="hard links to the host's files",
        tries="to have the host's files under names of its own, where it might change them",
        source=python("""
for path in ["/usr/bin/env", "/etc/passwd", "/bin/bash", "/dev/null"]:
    attempt("link " + path, lambda: os.link(path, "/tmp/mine"))
    attempt("link by descriptor", lambda: call(265, os.open(path, os.O_PATH), b"", -100, b"/tmp/a", 0x1000))
attempt("rename out", lambda: os.rename("/tmp/main.py", "/usr/main.py"))
attempt("link out", lambda: os.link("/tmp/main.py", "/usr/main.py"))
"""),
        says=b"held: link out",
    ),
    Attack(
        name="links as output files",
        tries="to have the host's files fetched for it",
        must_hold="nothing but regular files of its own, reached without a link, is handed out",
        source=python("""
os.symlink("/etc/passwd", "absolute")
os.symlink("../../../../etc/passwd", "relative")
os.symlink("/", "directory")
os.mkfifo("pipe")
os.symlink("/proc/self/environ", "magic")
os.mkdir("folder")
os.symlink("folder", "way")
open("folder/mine", "w").close()
import socket
socket.socket(socket.AF_UNIX).bind("socket")
print("laid")
"""),
        says=b"laid",
        fetch=(
            "absolute",
            "relative",
            "directory/etc/passwd",
            "pipe",
            "magic",
            "folder",
            "way/mine",
            "socket",
        ),
        holds=lambda result: result.files == {} and len(result.refused_files) == 8,
    ),
    Attack(
        name="links while it ends",
        tries="to swap a file for a link to the host's in the moment in which it is fetched",
        must_hold="whatever is fetched is the run's own: no process of it is alive by then",
        source=python("""
open("mine", "w").write("mine")
os.symlink("/etc/passwd", "link")
for _ in range(8):
    if os.fork() == 0:
        os.setsid()
        while True:
            try:
                call(316, -100, b"mine", -100, b"link", 2)
            except OSError:
                pass
time.sleep(0.05)
print("swapping")
"""),
        says=b"swapping",
        fetch=("mine", "link"),
        times=3,
        holds=lambda result: list(result.files.values()) in ([], [b"mine"]),
    ),
    Attack(
        name="the compiler's eyes",
        tries="to read the host's files with the compiler, before there is any program to hold",
        must_hold="compiling happens in a sandbox too: there is nothing to read",
        language="c",
        source='#include "/etc/shadow"\n#include "/proc/1/environ"\n#include "/root/.profile"\n'
        "int main(void) { return 0; }\n",
        verdicts=("compile_error",),
        holds=lambda result: (
            b"No such file" in result.stderr
            and b"root" not in result.stderr.replace(b"/root/.profile", b"")
        ),
    ),
    Attack(
        name="a bomb for the compiler",
        tries="to fill the compiler's memory and disk, or to keep it busy for ever",
        must_hold="compiling has limits of its own",
        language="c",
        source="#define A(x) x x x x x x x x x x\n#define B(x) A(A(A(x)))\n"
        "int main(void) { B(B(B(B(return 1;)))) }\n",
        verdicts=("compile_error",),
    ),
]
