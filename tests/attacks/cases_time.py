"""Attacks on time, and on what the verdict says of an ending."""

from __future__ import annotations

from attacks.frame import BUSY_THREADS, SHORT, STOPPED, Attack, Limits, c, python

BUSY = Limits(cpu_seconds=0.4, wall_seconds=5)
"""For attacks that the limit of processor time ends."""


def signal(number: int) -> dict[str, object]:
    return {"verdicts": ("signalled",), "holds": lambda result: result.signal == number}


CASES = [
    Attack(
        name="ignoring signals and sleeping",
        tries="to outlive its wall time",
        must_hold="the clock is outside, and what it does cannot be ignored",
        source=python("""
ignore_signals()
time.sleep(1000)
"""),
        limits=SHORT,
        verdicts=("wall_limit",),
    ),
    Attack(
        name="handling SIGXCPU",
        tries="to go on after the signal that says its processor time is over",
        must_hold="the limit does not depend on a signal that can be handled",
        language="c",
        source=c("""
static void again(int number) { (void)number; }
int main(void) { for (int n = 1; n < 65; n++) signal(n, again); for (;;) ; }
"""),
        limits=Limits(cpu_seconds=0.4, wall_seconds=3),
        verdicts=("cpu_limit",),
        holds=lambda result: result.cpu_seconds < 0.8,
    ),
    Attack(
        name="busy threads",
        tries="more processor time than allowed, by 16 threads",
        must_hold="they are counted together",
        language="c",
        source=c(BUSY_THREADS),
        limits=Limits(cpu_seconds=0.4, wall_seconds=5, processes=32),
        verdicts=("cpu_limit",),
        holds=lambda result: result.cpu_seconds < 0.9,
    ),
    Attack(
        name="busy children that come and go",
        tries="to hide processor time in children that end and are reaped",
        must_hold="their time counts",
        source=python("""
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        os._exit(0)
    os.wait()
"""),
        limits=BUSY,
        verdicts=("cpu_limit",),
        holds=lambda result: result.cpu_seconds < 0.9,
    ),
    Attack(
        name="busy orphans",
        tries="to hide processor time in children whose parent nobody is",
        must_hold="their time counts, and they end with the run",
        source=python("""
for _ in range(8):
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            while True:
                pass
        os._exit(0)
    os.wait()
time.sleep(60)
"""),
        limits=BUSY,
        verdicts=("cpu_limit",),
        holds=lambda result: result.cpu_seconds < 0.9,
    ),
    Attack(
        name="a storm of timers",
        tries="to keep the kernel busy with timers of a nanosecond and signals to itself",
        must_hold="it ends with its time",
        language="c",
        source=c("""
#include <sys/time.h>
#include <time.h>
static void nothing(int number) { (void)number; }
int main(void) {
  struct itimerspec often = {{0, 1}, {0, 1}};
  for (int i = 0; i < 64; i++) {
    timer_t timer;
    signal(SIGRTMIN + i % 20, nothing);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + i % 20};
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) == 0) timer_settime(timer, 0, &often, 0);
  }
  for (;;) pause();
}
"""),
        limits=SHORT,
        verdicts=STOPPED,
    ),
    Attack(
        name="the clock",
        tries="to set the time, for itself or for the host",
        source=python("""
import struct
now = struct.pack("qq", 10**9, 0)
refused("settimeofday", 164, now, None)
refused("clock_settime", 227, 0, now)
refused("adjtimex", 159, bytes(208))
refused("clock_adjtime", 305, 0, bytes(208))
refused("a time namespace", 272, 0x80)
"""),
        says=b"held: a time namespace",
    ),
    Attack(
        name="abort is a signal of its own",
        tries="to be seen as anything but a crash",
        must_hold="signalled, 6: as outside of a sandbox",
        source="import os; os.abort()",
        **signal(6),
    ),
    Attack(
        name="killing itself",
        tries="to look as if a limit had ended it",
        must_hold="signalled, 9, and no limit",
        source="import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        **signal(9),
    ),
    Attack(
        name="killed by its child",
        tries="to look as if the sandbox had ended it, by a child that kills its parent",
        must_hold="signalled, 9",
        source="import os, time\nif os.fork() == 0: os.kill(os.getppid(), 9)\ntime.sleep(9)",
        **signal(9),
    ),
    Attack(
        name="a false cpu limit",
        tries="to raise SIGXCPU itself",
        must_hold="signalled, 24: its processor time was not over",
        source="import os; os.kill(os.getpid(), 24)",
        **signal(24),
    ),
    Attack(
        name="exit codes of a signal",
        tries="to look like a program that was killed, by exiting with 137",
        must_hold="an exit is an exit",
        source="import sys; sys.exit(137)",
        verdicts=("nonzero_exit",),
        holds=lambda result: result.exit_code == 137 and result.signal is None,
    ),
    Attack(
        name="a thread that ends all",
        tries="to end by exit_group from a thread, its first thread being gone already",
        must_hold="the verdict is that of the exit",
        language="c",
        source=c("""
#include <pthread.h>
static void *end(void *x) { usleep(50000); exit(7); return x; }
int main(void) { pthread_t t; pthread_create(&t, 0, end, 0); pthread_exit(0); }
"""),
        verdicts=("nonzero_exit",),
        holds=lambda result: result.exit_code == 7,
    ),
    Attack(
        name="a child that runs out of memory",
        tries="to have a child killed for memory and to end as if nothing had been",
        must_hold="the verdict is memory_limit, whatever its own exit says",
        source=python("""
if os.fork() == 0:
    held = []
    while True:
        held.append(bytearray(1 << 20))
os.wait()
print("fine")
"""),
        verdicts=("memory_limit",),
    ),
    Attack(
        name="a core dump",
        tries="to leave an image of itself on the host, or to have the host start its crash handler",
        must_hold="no core is written anywhere the run can name",
        source=python("""
import signal
def crash():
    os.kill(os.getpid(), signal.SIGQUIT)
if os.fork() == 0:
    crash()
pid, status = os.wait()
print("BREACH: dumped" if os.WCOREDUMP(status) and os.listdir(".") != ["main.py"] else "held", flush=True)
crash()
"""),
        verdicts=("signalled",),
        says=b"held",
        fetch=("core",),
        holds=lambda result: result.files == {} and result.signal == 3,
    ),
]
