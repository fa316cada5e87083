"""Attacks on what a run may use: processes, memory, room, output, time."""

from __future__ import annotations

from attacks.frame import Attack, Limits, python

MIB = 1 << 20

CASES = [
    Attack(
        name="fork bomb",
        tries="as many processes as it can get, each of which starts more",
        language="bash",
        source="bomb() { bomb | bomb & }; bomb; sleep 10",
        verdicts=("wall_limit", "cpu_limit", "ok", "nonzero_exit", "output_limit"),
    ),
    Attack(
        name="fork bomb in sessions of its own",
        tries="children that leave the session by setsid and fork twice to lose their parent",
        source=python("""
for _ in range(1000):
    try:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while True:
                    try:
                        os.fork()
                    except OSError:
                        pass
            os._exit(0)
    except OSError:
        time.sleep(0.01)
"""),
        verdicts=("wall_limit", "cpu_limit"),
    ),
    Attack(
        name="vfork loop",
        tries="to exhaust process numbers with short-lived vfork children",
        language="c",
        source="""
#include <unistd.h>
int main(void) { for (;;) if (vfork() == 0) _exit(0); }
""",
        verdicts=("wall_limit", "cpu_limit"),
    ),
    Attack(
        name="more processes than allowed",
        tries="40 sleeping children under a limit of 32",
        source=python("""
born = 1
for _ in range(40):
    try:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        born += 1
    except OSError:
        break
print("BREACH" if born > 32 else "held", born)
"""),
        says=b"held 32",
    ),
    Attack(
        name="memory by touching it",
        tries="one process with more memory than the run may have",
        source="held = []\nwhile True:\n    held.append(bytearray(1 << 20))\n",
        verdicts=("memory_limit",),
        holds=lambda result: result.peak_memory <= 64 * MIB,
    ),
    Attack(
        name="memory in many processes",
        tries="20 processes that together have more than the run may have",
        source=python("""
for _ in range(20):
    if os.fork() == 0:
        held = bytearray(16 << 20)
        time.sleep(30)
time.sleep(30)
"""),
        verdicts=("memory_limit", "wall_limit"),
        holds=lambda result: result.peak_memory <= 64 * MIB,
    ),
    Attack(
        name="memory as shared mappings",
        tries="memory that belongs to no process: file after file of it",
        source=python("""
while True:
    fd = os.memfd_create("m")
    for _ in range(8):
        os.write(fd, bytes(1 << 20))
"""),
        verdicts=("memory_limit",),
    ),
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
        limits=Limits(wall_seconds=5, memory_bytes=64 * MIB, disk_bytes=16 * MIB, processes=8),
        verdicts=("ok", "signalled"),
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
        name="endless output",
        tries="to fill whoever reads it",
        language="bash",
        source="exec yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        verdicts=("output_limit",),
        holds=lambda result: result.truncated and len(result.stdout) == 1 << 16,
    ),
    Attack(
        name="ignoring signals and sleeping",
        tries="to outlive its wall time",
        source=python("""
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
time.sleep(1000)
"""),
        limits=Limits(wall_seconds=1),
        verdicts=("wall_limit",),
    ),
    Attack(
        name="busy threads",
        tries="more processor time than allowed, by 16 threads",
        language="c",
        source="""
#include <pthread.h>
static void *spin(void *x) { for (;;) ; return x; }
int main(void) {
  pthread_t t;
  for (int i = 0; i < 15; i++) pthread_create(&t, 0, spin, 0);
  spin(0);
}
""",
        limits=Limits(cpu_seconds=0.5, wall_seconds=10, processes=32),
        verdicts=("cpu_limit",),
        holds=lambda result: result.cpu_seconds < 1.0,
    ),
    Attack(
        name="busy children that come and go",
        tries="to hide processor time in children that end and are reaped",
        source=python("""
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        os._exit(0)
    os.wait()
"""),
        limits=Limits(cpu_seconds=0.5, wall_seconds=10),
        verdicts=("cpu_limit",),
        holds=lambda result: result.cpu_seconds < 1.0,
    ),
]
