"""Attacks on a slot as a whole: all that it has at once, and what its owner believes."""

from __future__ import annotations

from attacks.frame import MEMORY, MIB, Attack, Limits, python

CASES = [
    Attack(
        name="everything at once",
        tries="to use up processes, memory, disk, inodes, descriptors and output together",
        must_hold="it is ended, and the next run has everything again",
        source=python("""
for _ in range(20):
    try:
        os.fork()
    except OSError:
        break
held = []
try:
    while True:
        held.append(os.open("/dev/null", 0))
except OSError:
    pass
number = 0
while True:
    number += 1
    try:
        with open(f"/tmp/{os.getpid()}-{number}", "wb") as file:
            file.write(bytes(100_000))
    except OSError:
        pass
    os.write(1, b"x" * 100)
"""),
        limits=Limits(
            cpu_seconds=1,
            wall_seconds=2,
            memory_bytes=MEMORY,
            disk_bytes=40 * MIB,
            processes=16,
            output_bytes=1 << 20,
        ),
        verdicts=("memory_limit", "cpu_limit", "wall_limit", "output_limit"),
        then=python("""
for _ in range(14):
    if os.fork() == 0:
        time.sleep(9)
open("/tmp/x", "wb").write(bytes(20 << 20))
held = bytearray(20 << 20)
print("room for all")
"""),
        then_says=b"room for all",
        then_limits=Limits(wall_seconds=3, memory_bytes=MEMORY, disk_bytes=40 * MIB, processes=16),
    ),
    Attack(
        name="words of the spawner",
        tries="to write what looks like a message to the slot, on every descriptor and to every pid",
        must_hold="there is no descriptor that leads to the slot: the verdict is the kernel's",
        source=python("""
message = bytes([4, 0]) + bytes(64)
for fd in range(3, 4096):
    try:
        os.write(fd, message)
        print("BREACH: wrote to", fd)
    except OSError:
        pass
os.write(2, message)
print("tried")
sys.stdout.flush()
os._exit(9)
"""),
        verdicts=("nonzero_exit",),
        says=b"tried",
        holds=lambda result: result.exit_code == 9,
    ),
    Attack(
        name="more files than it was asked for",
        tries="to flood whoever fetches files: as much as the disk holds, three times over",
        must_hold="together they are no longer than the disk",
        source=python("""
with open("a", "wb") as file:
    file.write(bytes(10 << 20))
os.link("a", "b")
os.link("a", "c")
"""),
        limits=Limits(wall_seconds=3, memory_bytes=MEMORY, disk_bytes=16 * MIB),
        fetch=("a", "b", "c"),
        holds=lambda result: (
            sum(map(len, result.files.values())) <= 16 * MIB and len(result.refused_files) == 2
        ),
    ),
    Attack(
        name="a hundred quick deaths",
        tries="to wear the slot out: 100 runs in a row that crash at once",
        must_hold="the hundredth verdict is as right as the first",
        language="bash",
        source="kill -SEGV $$",
        verdicts=("signalled",),
        times=100,
        holds=lambda result: result.signal == 11,
    ),
]
