"""Attacks on memory: every kind of it that is charged to somebody else if to anybody."""

from __future__ import annotations

from attacks.frame import MEMORY, MIB, ROOMY, SHORT, STOPPED, Attack, Limits, c, python

from k15core.types import RunResult

OUT_OF_MEMORY = ("memory_limit",)


def within(result: RunResult) -> bool:
    """The peak is not above the limit that attacks have."""
    return result.peak_memory <= MEMORY


CASES = [
    Attack(
        name="memory by touching it",
        tries="one process with more memory than the run may have",
        must_hold="it is killed for it, and its peak is within the limit",
        source="held = []\nwhile True:\n    held.append(bytearray(1 << 20))\n",
        verdicts=OUT_OF_MEMORY,
        holds=within,
    ),
    Attack(
        name="memory in many processes",
        tries="20 processes that together have more than the run may have",
        must_hold="they are counted together",
        source=python("""
for _ in range(20):
    if os.fork() == 0:
        held = bytearray(16 << 20)
        time.sleep(30)
time.sleep(30)
"""),
        limits=SHORT,
        verdicts=(*OUT_OF_MEMORY, "wall_limit"),
        holds=within,
    ),
    Attack(
        name="memory as files of no name",
        tries="memory that belongs to no process: file after file of memfd_create",
        must_hold="it is charged to the run all the same",
        source=python("""
while True:
    fd = os.memfd_create("m")
    for _ in range(8):
        os.write(fd, bytes(1 << 20))
"""),
        verdicts=OUT_OF_MEMORY,
        holds=within,
    ),
    Attack(
        name="memory as shared mappings",
        tries="anonymous shared mappings, half of them touched by a child",
        must_hold="they are charged to the run",
        language="c",
        source=c("""
int main(void) {
  for (;;) {
    char *at = mmap(0, 8 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return 3;
    memset(at, 1, 4 << 20);
    pid_t child = fork();
    if (child == 0) { memset(at + (4 << 20), 1, 4 << 20); _exit(0); }
    waitpid(child, 0, 0);
  }
}
"""),
        verdicts=OUT_OF_MEMORY,
        holds=within,
    ),
    Attack(
        name="memory as System V segments",
        tries="segments that outlive whoever made them, attached, touched and detached again",
        must_hold="they are charged to the run",
        language="c",
        source=c("""
#include <sys/shm.h>
int main(void) {
  for (;;) {
    int id = shmget(IPC_PRIVATE, 8 << 20, 0600);
    if (id < 0) { perror("held"); return 3; }
    char *at = shmat(id, 0, 0);
    memset(at, 1, 8 << 20);
    shmdt(at);
  }
}
"""),
        verdicts=OUT_OF_MEMORY,
        holds=within,
    ),
    Attack(
        name="memory in pipes",
        tries="full pipes, each as large as it can be made, in many processes",
        must_hold="what lies in pipes is charged to the run or cannot be had",
        language="c",
        source=c("""
int main(void) {
  for (int child = 0; child < 25 && fork(); child++);
  static char block[1 << 20];
  for (int ends[2]; pipe(ends) == 0;) {
    fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
    while (write(ends[1], block, sizeof block) > 0);
  }
  pause();
}
"""),
        limits=SHORT,
        verdicts=(*OUT_OF_MEMORY, *STOPPED),
        holds=within,
    ),
    Attack(
        name="memory in sockets",
        tries="unix sockets with full buffers, as large as they can be made",
        must_hold="what lies in sockets is charged to the run or cannot be had",
        language="c",
        source=c("""
int main(void) {
  for (int child = 0; child < 25 && fork(); child++);
  static char block[100000];
  for (int ends[2]; socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0;) {
    int size = 1 << 30;
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    while (write(ends[0], block, sizeof block) > 0);
  }
  pause();
}
"""),
        limits=SHORT,
        verdicts=(*OUT_OF_MEMORY, *STOPPED),
        holds=within,
    ),
    Attack(
        name="memory in message queues",
        tries="as many System V queues as there may be, all full",
        must_hold="messages are charged to the run or cannot be had",
        language="c",
        source=c("""
#include <sys/msg.h>
int main(void) {
  static struct { long kind; char text[8000]; } message = {1};
  for (int id; (id = msgget(IPC_PRIVATE, 0600)) >= 0;)
    while (msgsnd(id, &message, sizeof message.text, IPC_NOWAIT) == 0);
  puts("all full");
}
"""),
        limits=SHORT,
        verdicts=(*OUT_OF_MEMORY, "ok", "wall_limit"),
        holds=within,
    ),
    Attack(
        name="memory in kernel objects",
        tries="descriptors that cost the kernel memory and the process none: epoll, eventfd, timers",
        must_hold="they are limited by open files, and charged to the run",
        language="c",
        source=c("""
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
int main(void) {
  for (int child = 0; child < 28 && fork(); child++);
  int epoll = epoll_create1(0);
  for (int fd; (fd = eventfd(0, 0)) >= 0;)
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN});
  timer_t timer;
  struct sigevent none = {.sigev_notify = SIGEV_NONE};
  for (int i = 0; i < 20000 && timer_create(CLOCK_MONOTONIC, &none, &timer) == 0; i++);
  pause();
}
"""),
        limits=SHORT,
        verdicts=(*OUT_OF_MEMORY, *STOPPED),
        holds=within,
    ),
    Attack(
        name="memory on the run's disk",
        tries="processes' memory and files, which lie in memory, each within its limit, not together",
        must_hold="files and processes have one limit",
        source=python("""
with open("/tmp/big", "wb") as file:
    for _ in range(48):
        file.write(bytes(1 << 20))
held = bytearray(48 << 20)
print("BREACH: 96 MiB of 64")
"""),
        limits=ROOMY,
        verdicts=OUT_OF_MEMORY,
        holds=within,
    ),
    Attack(
        name="the page cache",
        tries="to be charged for, or to push others out by, reading more files than it has memory",
        must_hold="cached files are given back when they are in the way: it ends well",
        source=python("""
read = 0
for folder, _, names in os.walk("/usr/lib"):
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                read += len(file.read(4 << 20))
        except OSError:
            pass
    if read > 100 << 20:
        break
print("read", read >> 20)
"""),
        says=b"read ",
        limits=Limits(wall_seconds=10, memory_bytes=MEMORY, disk_bytes=MIB),
        holds=within,
    ),
    Attack(
        name="names of files that are not there",
        tries="to fill the kernel's memory with entries of the host's directories that do not exist",
        must_hold="they are charged to the run and given back",
        language="c",
        source=c("""
int main(void) {
  char name[300];
  struct stat status;
  for (int i = 0; i < 300000; i++) {
    snprintf(name, sizeof name, "/usr/%0200d", i);
    if (stat(name, &status) == 0) return 1;
  }
  puts("none of 300000 is there");
}
"""),
        says=b"none of 300000",
        # What is given back is waited for, the longer the busier the machine.
        limits=Limits(wall_seconds=60, cpu_seconds=30, memory_bytes=MEMORY, disk_bytes=MIB),
        holds=within,
    ),
    Attack(
        name="an endless stack",
        tries="recursion without end",
        must_hold="it falls to a signal at the limit of its stack or of its memory",
        language="c",
        source=c("""
static int deeper(volatile char *above) {
  volatile char frame[4096];
  frame[0] = above[0];
  return deeper(frame) + frame[0];
}
int main(void) { volatile char start = 1; return deeper(&start); }
"""),
        limits=Limits(wall_seconds=3, memory_bytes=MEMORY, stack_bytes=8 * MIB),
        verdicts=("signalled",),
        holds=lambda result: result.signal == 11,
    ),
    Attack(
        name="locked memory",
        tries="memory that cannot be swapped out or taken back",
        source=python("""
attempt("mlock", lambda: call(149, 0x10000, 4096))
attempt("mlock of its own", lambda: call(149, ctypes.addressof(ctypes.create_string_buffer(9)), 9))
attempt("mlockall", lambda: call(151, 3))
"""),
        says=b"held: mlockall",
    ),
    Attack(
        name="huge pages",
        tries="memory from the host's pool of huge pages, which no memory limit counts",
        source=c("""
#include <sys/shm.h>
int main(void) {
  size_t size = 2 << 20;
  int anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
  refused("mmap", mmap(0, size, PROT_READ | PROT_WRITE, anonymous | MAP_HUGETLB, -1, 0));
  refused("mmap of 1 GiB pages", mmap(0, 1 << 30, PROT_READ, anonymous | MAP_HUGETLB | 30 << 26, -1, 0));
  refused("memfd_create", syscall(SYS_memfd_create, "m", MFD_HUGETLB));
  refused("shmget", shmget(IPC_PRIVATE, size, SHM_HUGETLB | 0600));
}
"""),
        language="c",
        says=b"held: shmget",
    ),
]
