"""Attacks on room: the run's disk, descriptors, and whoever reads its output."""

from __future__ import annotations

from attacks.frame import MEMORY, MIB, SHORT, Attack, Limits, c, python

DISK = Limits(
    wall_seconds=3, memory_bytes=MEMORY, disk_bytes=16 * MIB, disk_files=1024, processes=8
)

CASES = [
    Attack(
        name="the whole disk",
        tries="a file larger than the file system it lies on",
        source=python("""
def fill():
    with open("/tmp/big", "wb", buffering=0) as file:
        for _ in range(1024):
            file.write(bytes(1 << 20))
attempt("1 GiB on a disk of 16 MiB", fill)
"""),
        limits=DISK,
        verdicts=("ok", "signalled"),
    ),
    Attack(
        name="the whole disk in many files",
        tries="files that are each small enough, on /tmp and on /dev/shm, which is the same",
        source=python("""
def fill():
    for number in range(1000):
        folder = ("/tmp", "/dev/shm")[number % 2]
        with open(f"{folder}/f{number}", "wb", buffering=0) as file:
            if file.write(bytes(1 << 20)) < 1 << 20:
                raise OSError("no room")
attempt("1000 MiB on a disk of 16 MiB", fill)
"""),
        limits=DISK,
        says=b"held: 1000 MiB",
    ),
    Attack(
        name="sparse files",
        tries="files of enormous size without content, to be read by whoever fetches them",
        must_hold="a file is no longer than the disk, and what is fetched is bounded",
        source=python("""
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
attempt("ftruncate to 1 TiB", lambda: os.ftruncate(fd, 1 << 40))
attempt("write at 1 TiB", lambda: os.pwrite(fd, b"x", 1 << 40))
attempt("fallocate", lambda: os.posix_fallocate(fd, 0, 1 << 30))
for name in "abcd":
    with open(name, "wb") as file:
        file.truncate(16 << 20)
"""),
        limits=DISK,
        says=b"held: fallocate",
        fetch=("a", "b", "c", "d"),
        holds=lambda result: sum(map(len, result.files.values())) <= 16 * MIB,
    ),
    Attack(
        name="all inodes",
        tries="more files than the file system has inodes",
        source=python("""
def fill():
    for number in range(100_000):
        os.close(os.open(f"/tmp/f{number}", os.O_CREAT | os.O_WRONLY))
attempt("100,000 files", fill)
"""),
        says=b"held: 100,000 files",
    ),
    Attack(
        name="all inodes by links",
        tries="more hard links, symbolic links, pipes and sockets than there are inodes",
        source=python("""
import socket
open("/tmp/one", "w").close()
def fill(make):
    for number in range(100_000):
        make(f"/tmp/{make.__name__}{number}")
def hard(path):
    os.link("/tmp/one", path)
def bound(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)
def soft(path):
    os.symlink("x" * 200, path)
for make in [hard, soft, os.mkfifo, bound]:
    attempt(f"100,000 by {make.__name__}", lambda: fill(make))
"""),
        limits=DISK,
        says=b"held: 100,000 by bound",
    ),
    Attack(
        name="a deep tree",
        tries="directories so deep that whoever removes them runs out of stack or names",
        must_hold="the disk is dropped as a whole",
        source=python("""
os.chdir("/tmp")
depth = 0
try:
    while depth < 4000:
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
        depth += 1
except OSError as error:
    print("held:", error)
print("depth", depth)
"""),
        says=b"depth ",
    ),
    Attack(
        name="all descriptors",
        tries="more open files than allowed",
        source=python("""
def fill():
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(10_000)]
attempt("10,000 descriptors", fill)
"""),
        says=b"held: 10,000 descriptors",
    ),
    Attack(
        name="descriptors in flight",
        tries="more open files than allowed, by sending them to itself and closing its own",
        must_hold="those in flight are limited too, and go with the run",
        source=python("""
import array, socket
sent, kept = 0, []
try:
    for _ in range(90):
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        kept += [a, b]
        a.setblocking(False)
        fds = array.array("i", [os.open("/dev/null", 0) for _ in range(50)])
        try:
            while True:
                a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
                sent += len(fds)
        except BlockingIOError:
            pass
        finally:
            for fd in fds:
                os.close(fd)
    print("BREACH:", sent)
except OSError as error:
    print("held after", sent, error)
"""),
        says=b"held after",
    ),
    Attack(
        name="endless output",
        tries="to fill whoever reads it",
        must_hold="it is cut at the limit and the run ended",
        language="bash",
        source="exec yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        verdicts=("output_limit",),
        holds=lambda result: result.truncated and len(result.stdout) == 1 << 16,
    ),
    Attack(
        name="endless errors from everyone",
        tries="to fill stderr from many processes, signals ignored, large writes",
        must_hold="it is cut at the limit and all are ended",
        language="c",
        source=c("""
int main(void) {
  static char block[1 << 20];
  for (int number = 1; number < 65; number++) signal(number, SIG_IGN);
  memset(block, 'e', sizeof block);
  for (int i = 0; i < 10; i++) if (fork() == 0) { setsid(); break; }
  for (;;) if (write(2, block, sizeof block) < 0) usleep(10);
}
"""),
        verdicts=("output_limit",),
        holds=lambda result: result.truncated and len(result.stderr) == 1 << 16,
    ),
    Attack(
        name="output by splice",
        tries="to pass more to its reader than it writes: splice, tee and sendfile into stdout",
        must_hold="what comes out is counted, however it went in",
        language="c",
        source=c("""
#include <sys/sendfile.h>
int main(void) {
  int zero = open("/dev/zero", O_RDONLY), file = open("/tmp/f", O_RDWR | O_CREAT, 0600);
  (void)!ftruncate(file, 1 << 20);
  for (;;) {
    off_t start = 0;
    if (splice(zero, 0, 1, 0, 1 << 20, 0) <= 0 && sendfile(1, file, &start, 1 << 20) <= 0) return 1;
  }
}
"""),
        verdicts=("output_limit",),
        holds=lambda result: result.truncated and len(result.stdout) == 1 << 16,
    ),
    Attack(
        name="holding on to its output",
        tries="to make its reader wait: it ends, and a child in a session of its own keeps the pipes",
        must_hold="the run is over when the program is",
        source=python("""
if os.fork() == 0:
    os.setsid()
    time.sleep(60)
print("gone")
"""),
        says=b"gone",
        holds=lambda result: result.wall_seconds < 2,
    ),
    Attack(
        name="output that is taken back",
        tries="to read its own output, or to write its own input, through /proc/self/fd",
        source=python("""
for number, mode in [(1, os.O_RDONLY), (2, os.O_RDONLY), (1, os.O_RDWR), (0, os.O_WRONLY)]:
    attempt(f"open {number}", lambda: os.open(f"/proc/self/fd/{number}", mode))
"""),
        stdin=b"input",
        says=b"held: open 0",
        only_as_root="the pipes are its user's: it can waste its own output, no more",
    ),
    Attack(
        name="never reading its input",
        tries="to block whoever writes its input",
        must_hold="it is ended by its clock",
        source="import time; time.sleep(60)",
        stdin=b"x" * (4 << 20),
        limits=SHORT,
        verdicts=("wall_limit",),
    ),
]
