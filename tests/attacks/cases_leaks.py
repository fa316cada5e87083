"""Attacks on what a run is born with, and on what the run before has left."""

from __future__ import annotations

from attacks.frame import MEMORY, MIB, ROOMY, Attack, Limits, c, python

CASES = [
    Attack(
        name="inherited descriptors",
        tries="descriptors that the sandbox forgot to close",
        must_hold="there are three, and none leads anywhere",
        language="c",
        source=c("""
int main(void) {
  char target[300], name[32];
  int count = 0;
  for (int fd = 0; fd < 4096; fd++) {
    if (fcntl(fd, F_GETFD) < 0) continue;
    count++;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, target, sizeof target - 1);
    target[length > 0 ? length : 0] = 0;
    if (strncmp(target, "pipe:", 5) && strcmp(target, "/dev/null")) printf("BREACH: %s\\n", target);
  }
  printf("%s %d\\n", count == 3 ? "held" : "BREACH:", count);
}
"""),
        says=b"held 3",
    ),
    Attack(
        name="inherited environment",
        tries="names and secrets in the environment of whoever started the sandbox",
        must_hold="it has the variables of the sandbox's own and no others",
        source=python("""
known = {"PATH", "HOME", "TMPDIR", "LANG", "USER", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS",
         "LC_CTYPE", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE"}
for name in sorted(set(os.environ) - known):
    print("BREACH:", name)
print("looked")
"""),
        says=b"looked",
    ),
    Attack(
        name="inherited identity",
        tries="users, groups and capabilities that it should not have",
        must_hold="a user and a group of nobody's, no other group, no capability of any kind",
        source=python("""
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
users, groups = set(status["Uid"].split()), set(status["Gid"].split())
if len(users) != 1 or int(min(users)) < 1000 or groups != {"65534"} or status["Groups"].strip():
    print("BREACH:", users, groups, status["Groups"])
for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]:
    if int(status[name], 16):
        print("BREACH:", name, status[name])
if status["NoNewPrivs"] != "1" or status["Seccomp"] != "2":
    print("BREACH:", status["NoNewPrivs"], status["Seccomp"])
attempt("capset", lambda: call(126, (0x20080522).to_bytes(8, "little"), b"\\xff" * 24))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("setuid", lambda: os.setuid(0))
attempt("setfsuid", lambda: call(122, 0) != 0 and call(122, 0) == 0 or open("/etc/shadow"))
print("looked")
"""),
        says=b"looked",
    ),
    Attack(
        name="inherited signals",
        tries="signals that were left blocked or ignored, so that limits and crashes mean something else",
        must_hold="none is blocked or ignored, but what the language itself ignores",
        language="c",
        source=c("""
int main(void) {
  sigset_t blocked;
  sigprocmask(SIG_BLOCK, 0, &blocked);
  for (int number = 1; number < 65; number++) {
    struct sigaction now;
    if (sigaction(number, 0, &now)) continue;
    if (now.sa_handler != SIG_DFL || sigismember(&blocked, number)) printf("BREACH: %d\\n", number);
  }
  puts("looked");
}
"""),
        says=b"looked",
    ),
    Attack(
        name="where it is",
        tries="to learn of the host from its mounts, cgroups, name, session and terminal",
        must_hold="it is at the root of its cgroups, on a host called sandbox, with no terminal",
        source=python("""
mounts = open("/proc/self/mountinfo").read()
for word in ["/root", "/home", "cgroup", "/var/lib", "sysfs", "k15core"]:
    if word in mounts:
        print("BREACH:", word)
for line in open("/proc/self/cgroup").read().splitlines():
    if not line.endswith(":/"):
        print("BREACH:", line)
if os.uname().nodename != "sandbox" or any(os.isatty(fd) for fd in range(3)):
    print("BREACH:", os.uname().nodename)
if int(open("/proc/self/stat").read().rpartition(")")[2].split()[4]):
    print("BREACH: a terminal")
attempt("the session of its elders", lambda: os.kill(-os.getsid(0) or -1, 0))
print("looked")
"""),
        says=b"looked",
    ),
    Attack(
        name="files of the run before",
        tries="to find files, links, sockets, times or modes of the last run in /tmp and /dev/shm",
        must_hold="the next run's disk is as if new",
        source=python("""
import socket
os.mkdir("/tmp/.hidden")
for path in ["/tmp/a", "/dev/shm/b", "/tmp/.hidden/c"]:
    open(path, "w").write("secret")
os.mkfifo("/tmp/pipe")
socket.socket(socket.AF_UNIX).bind("/tmp/socket")
os.utime("/tmp")
attempt("chmod /tmp", lambda: os.chmod("/tmp", 0o711))
os.unlink("/tmp/main.py")
os.mkdir("/tmp/main.py")
open("/tmp/main.py/x", "w").close()
"""),
        then=python("""
if os.listdir("/tmp") != ["main.py"] or os.listdir("/dev/shm") != ["main.py"]:
    print("BREACH:", os.listdir("/tmp"))
status, room = os.stat("/tmp"), os.statvfs("/tmp")
if status.st_mode & 0o7777 != 0o1777 or status.st_uid == os.getuid():
    print("BREACH:", oct(status.st_mode))
if room.f_files - room.f_ffree > 2 or (room.f_blocks - room.f_bfree) * room.f_frsize > 65536:
    print("BREACH: room", room)
if open("/tmp/main.py").read(17) != "import contextlib":
    print("BREACH: the program")
print("clean")
"""),
        then_says=b"clean",
        only_as_root="/tmp is its user's; test_ordinary_user.py looks at the next run",
    ),
    Attack(
        name="processes of the run before",
        tries="to leave processes that wait for the next run",
        must_hold="the next run has nobody beside it",
        source=python("""
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
"""),
        then=python("""
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
if others not in ([], ["1"]):
    print("BREACH:", others)
print("alone as", os.getpid())
"""),
        then_says=b"alone",
    ),
    Attack(
        name="shared memory of the run before",
        tries="to leave System V segments, semaphores and queues for the next run",
        must_hold="there are none, and their keys are free",
        language="c",
        source=c("""
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
int main(void) {
  for (int key = 1; key < 9; key++) {
    int id = shmget(key, 4096, IPC_CREAT | 0666);
    strcpy(shmat(id, 0, 0), "secret");
    semget(key, 1, IPC_CREAT | 0666);
    msgsnd(msgget(key, IPC_CREAT | 0666), "\\1\\0\\0\\0\\0\\0\\0\\0x", 1, 0);
  }
  puts("left");
}
"""),
        says=b"left",
        then=c("""
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
int main(void) {
  for (int key = 1; key < 9; key++) {
    attempt("segment", shmget(key, 4096, 0));
    attempt("semaphores", semget(key, 1, 0));
    attempt("queue", msgget(key, 0));
  }
  attempt("segment by index", shmctl(0, SHM_STAT, &(struct shmid_ds){0}));
  attempt("segment by index, of anyone", shmctl(0, 15, &(struct shmid_ds){0}));
}
"""),
        then_says=b"held: segment by index, of anyone",
        then_limits=Limits(wall_seconds=3),
    ),
    Attack(
        name="memory of the run before",
        tries="to leave the next run less memory: a full disk and full segments when it ends",
        must_hold="the next run, at once, has all of its own",
        source=python("""
with open("/tmp/big", "wb") as file:
    for _ in range(40):
        file.write(bytes(1 << 20))
for _ in range(10):
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(0, ctypes.c_size_t(1 << 20), 0o1600)
    ctypes.memset(libc.shmat(segment, None, 0), 1, 1 << 20)
print("full")
"""),
        says=b"full",
        limits=ROOMY,
        then=python("""
held = bytearray(50 << 20)
for at in range(0, len(held), 4096):
    held[at] = 1
print("all there")
"""),
        then_says=b"all there",
        then_limits=ROOMY,
        times=10,
    ),
    Attack(
        name="files kept by descriptors in flight",
        tries="to keep its disk and a socket's name alive past its end, in a circle of sockets",
        must_hold="the next run finds the disk empty and the name free",
        source=python("""
import array, socket
a, b = socket.socketpair()
name = socket.socket(socket.AF_UNIX)
name.bind("\\0kept")
name.listen()
file = os.open("/tmp/kept", os.O_RDWR | os.O_CREAT)
os.write(file, bytes(8 << 20))
fds = array.array("i", [a.fileno(), b.fileno(), name.fileno(), file])
a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
b.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
print("in flight")
"""),
        says=b"in flight",
        then=python("""
import socket
room = os.statvfs("/tmp")
if os.listdir("/tmp") != ["main.py"] or (room.f_blocks - room.f_bfree) * room.f_frsize > 65536:
    print("BREACH:", os.listdir("/tmp"), room)
attempt("connect", lambda: socket.socket(socket.AF_UNIX).connect("\\0kept"))
"""),
        then_says=b"held: connect",
        times=5,
    ),
    Attack(
        name="settings of descriptors that are shared",
        tries="to change what the next run's empty input does: not blocking, signals, locks",
        must_hold="every run has its own",
        language="c",
        source=c("""
#include <sys/file.h>
int main(void) {
  fcntl(0, F_SETFL, O_NONBLOCK | O_ASYNC | O_APPEND);
  fcntl(0, F_SETOWN, getpid());
  fcntl(0, F_SETSIG, SIGKILL);
  flock(0, LOCK_EX);
  puts("set");
}
"""),
        says=b"set",
        then=c("""
#include <sys/file.h>
int main(void) {
  int flags = fcntl(0, F_GETFL) & (O_NONBLOCK | O_ASYNC | O_APPEND);
  int other = open("/proc/self/fd/0", O_RDONLY);
  int locked = other >= 0 && flock(other, LOCK_EX | LOCK_NB);
  printf("%s %x %d %d %d\\n", flags || fcntl(0, F_GETOWN) || fcntl(0, F_GETSIG) || locked ? "BREACH:" : "held",
         flags, fcntl(0, F_GETOWN), fcntl(0, F_GETSIG), locked);
}
"""),
        then_says=b"held",
    ),
    Attack(
        name="time of the run before",
        tries="to have its processor time, peak memory or killed children counted for the next run",
        must_hold="each run's accounts begin at nothing",
        source=python("""
end = time.process_time() + 0.4
while time.process_time() < end:
    pass
if os.fork() == 0:
    held = []
    while True:
        held.append(bytearray(1 << 20))
os.wait()
"""),
        verdicts=("memory_limit",),
        then=python("""
used = time.process_time()
print("mine", used)
"""),
        then_says=b"mine",
        then_limits=Limits(cpu_seconds=0.3, wall_seconds=3, memory_bytes=MEMORY),
    ),
    Attack(
        name="limits of the run before",
        tries="to run with the limits of a run that was allowed more",
        must_hold="limits are those of the run",
        source=python("""
held = bytearray(150 << 20)
print("allowed")
"""),
        says=b"allowed",
        limits=Limits(wall_seconds=3, memory_bytes=256 * MIB, processes=64),
        then=python("""
born = 1
while born < 64:
    try:
        if os.fork() == 0:
            time.sleep(9)
            os._exit(0)
        born += 1
    except OSError:
        break
room = os.statvfs("/tmp")
print("BREACH" if born > 32 or room.f_blocks * room.f_frsize > 2 << 20 else "held", born)
"""),
        then_says=b"held 32",
        then_limits=Limits(wall_seconds=3, memory_bytes=MEMORY, processes=32, disk_bytes=MIB),
    ),
]
