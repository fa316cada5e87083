"""Attacks by processes: bombs, daemons, and signals to whatever can be seen."""

from __future__ import annotations

from attacks.frame import (
    BUSY_THREADS,
    INIT_IS_OURS,
    MEMORY,
    SHORT,
    STOPPED,
    Attack,
    Limits,
    c,
    python,
)

CASES = [
    Attack(
        name="fork bomb",
        tries="as many processes as it can get, each of which starts more",
        must_hold="no more than allowed, and all are gone when its time is over",
        language="bash",
        source="bomb() { bomb | bomb & }; bomb; sleep 10",
        limits=SHORT,
        verdicts=(*STOPPED, "ok", "nonzero_exit", "output_limit"),
    ),
    Attack(
        name="fork bomb in sessions of its own",
        tries="children that leave the session by setsid and fork twice to lose their parent",
        must_hold="no process leaves the run: all are gone when its time is over",
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
        limits=SHORT,
        verdicts=(*STOPPED, "memory_limit"),  # forks of an interpreter have pages of their own
    ),
    Attack(
        name="fork bomb of siblings",
        tries="children by CLONE_PARENT, which are init's and not its own, each starting more",
        must_hold="init reaps them, the limits count them, and all are gone in the end",
        language="c",
        source=c("""
int main(void) {
  for (;;) if (syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0) < 0) usleep(100);
}
"""),
        limits=SHORT,
        verdicts=(*STOPPED, "memory_limit"),
    ),
    Attack(
        name="vfork loop",
        tries="to exhaust process numbers with short-lived vfork children",
        must_hold="it ends with its time, or with what the kernel has not given back of its children",
        language="c",
        source=c("int main(void) { for (;;) if (vfork() == 0) _exit(0); }"),
        limits=SHORT,
        verdicts=(*STOPPED, "memory_limit"),
    ),
    Attack(
        name="vfork chain",
        tries="parents that cannot be woken, each waiting for a vfork child that waits for its own",
        must_hold="waiting in the kernel does not save it from its time limit",
        language="c",
        source=c("""
static void deeper(int n) { if (n && vfork() == 0) { deeper(n - 1); pause(); _exit(0); } }
int main(void) { deeper(20); for (;;) pause(); }
"""),
        limits=SHORT,
        verdicts=("wall_limit",),
    ),
    Attack(
        name="exec loop",
        tries="to escape its clocks by becoming a new program for ever",
        must_hold="time goes on counting over exec",
        language="bash",
        source='exec /bin/bash "$0"',
        limits=SHORT,
        verdicts=STOPPED,
    ),
    Attack(
        name="more processes than allowed",
        tries="40 sleeping children under a limit of 32",
        must_hold="32 at once and no more",
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
        name="more threads than allowed",
        tries="100 threads under a limit of 32",
        must_hold="threads count as processes do",
        language="c",
        source=c("""
#include <pthread.h>
static void *wait_long(void *x) { pause(); return x; }
int main(void) {
  pthread_attr_t small; pthread_attr_init(&small); pthread_attr_setstacksize(&small, 65536);
  int born = 1; pthread_t thread;
  while (born < 100 && pthread_create(&thread, &small, wait_long, 0) == 0) born++;
  printf("%s %d\\n", born > 32 ? "BREACH" : "held", born);
}
"""),
        says=b"held 32",
    ),
    Attack(
        name="zombies",
        tries="to use up process numbers with children that it never waits for",
        must_hold="the dead count until they are waited for, and go with the run",
        source=python("""
born = 1
while born < 100:
    try:
        if os.fork() == 0:
            os._exit(0)
        born += 1
    except OSError:
        break
print("BREACH" if born > 32 else "held", born)
"""),
        says=b"held 32",
    ),
    Attack(
        name="a daemon",
        tries="to go on after its end: two forks, a session of its own, all signals ignored",
        must_hold="the run is over when the program is, and nothing of it lives on",
        source=python("""
ignore_signals()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(0.001)
    os._exit(0)
time.sleep(0.1)
print("left one behind")
"""),
        says=b"left one behind",
        holds=lambda result: result.wall_seconds < 2,
    ),
    Attack(
        name="a subreaper's children",
        tries="to keep orphans to itself by PR_SET_CHILD_SUBREAPER and to end before them",
        must_hold="they end with the program",
        language="c",
        source=c("""
#include <sys/prctl.h>
int main(void) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  for (int i = 0; i < 10; i++) if (fork() == 0) { if (fork() == 0) pause(); _exit(0); }
  while (waitpid(-1, 0, WNOHANG) > 0);
  puts("ending first");
}
"""),
        says=b"ending first",
    ),
    Attack(
        name="killing init and everyone",
        tries="to end the run's init, or whatever else it can see",
        must_hold="init cannot be signalled, and there is nobody else",
        source=python("""
import signal
attempt("kill init", lambda: os.kill(1, signal.SIGKILL))
attempt("stop init", lambda: os.kill(1, signal.SIGSTOP))
attempt("interrupt init", lambda: os.kill(1, signal.SIGINT))
attempt("queue to init", lambda: call(129, 1, 35, bytes(128)))
attempt("kill all", lambda: os.kill(-1, 0))
attempt("kill its elders' group", lambda: os.killpg(os.getpgid(os.getppid()) or -1, signal.SIGKILL))
print("alive, with parent", os.getppid())
"""),
        says=b"alive, with parent 1",
        only_as_root=INIT_IS_OURS,
    ),
    Attack(
        name="killing by number",
        tries="to kill the spawner, or any process of the host, by trying every number",
        must_hold="no number means anybody outside",
        language="c",
        source=c("""
int main(void) {
  long hit = 0;
  signal(SIGTERM, SIG_IGN);
  for (int pid = 1; pid < 200000; pid++)
    if (pid != getpid() && kill(pid, SIGKILL) == 0) hit++;
  int group = 0;
  for (int id = 2; id < 200000; id++) if (id != getpgrp() && kill(-id, SIGKILL) == 0) group++;
  printf("%s %ld processes, %d groups\\n", hit + group ? "BREACH:" : "held:", hit, group);
}
"""),
        says=b"held: 0 processes, 0 groups",
        only_as_root=INIT_IS_OURS,
    ),
    Attack(
        name="stopping itself",
        tries="to sit in its slot for ever, stopped rather than asleep",
        must_hold="a stopped run is killed like any other",
        source=python("import signal\nos.kill(os.getpid(), signal.SIGSTOP)\n"),
        limits=SHORT,
        verdicts=("wall_limit",),
    ),
    Attack(
        name="starving the spawner",
        tries="with a twentieth of a processor, 16 busy threads that leave nothing of it to others",
        must_hold="the spawner, which may live in the same cgroup, still ends it in time",
        language="c",
        source=c(BUSY_THREADS),
        limits=Limits(cpus=0.05, wall_seconds=0.5, memory_bytes=MEMORY),
        verdicts=STOPPED,
        holds=lambda result: result.wall_seconds < 2.5,
    ),
    Attack(
        name="going ahead of others",
        tries="real-time and deadline scheduling, higher priority, the first place at the disk",
        source=python("""
class Parameter(ctypes.Structure):
    _fields_ = [("priority", ctypes.c_int)]
one = bytes(Parameter(1))
attempt("SCHED_FIFO", lambda: call(144, 0, 1, one))
attempt("SCHED_RR", lambda: call(144, 0, 2, one))
attempt("nice -20", lambda: os.nice(-20))
attempt("priority of all of its user", lambda: os.setpriority(os.PRIO_USER, 0, -5))
deadline = __import__("struct").pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10**6, 10**7, 10**7)
refused("SCHED_DEADLINE", 314, 0, deadline, 0)
refused("ioprio_set", 251, 1, 0, (1 << 13) | 0)
"""),
        says=b"held: ioprio_set",
    ),
    Attack(
        name="raising its limits",
        tries="setrlimit and prlimit for more, for itself and for init",
        must_hold="hard limits stay where they are",
        source=python("""
import resource
for name in ["CPU", "FSIZE", "STACK", "NOFILE", "CORE", "MEMLOCK", "NPROC", "NICE", "RTPRIO"]:
    which = getattr(resource, "RLIMIT_" + name)
    soft, hard = resource.getrlimit(which)
    more = hard + 1
    attempt(name, lambda: resource.setrlimit(which, (soft, more)))
    if name not in ("NICE", "RTPRIO"):
        if hard < 0:
            print("BREACH:", name, "has no limit")
    elif hard != 0:
        print("BREACH:", name, "may be", hard)
attempt("init's", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (8, 8)))
"""),
        says=b"held: init's",
        only_as_root=INIT_IS_OURS,
    ),
]
