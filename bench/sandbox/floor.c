/* The floor under sandbox.direct: what the kernel asks for one program in fresh namespaces, in a bare loop.

   floor PROGRAM RUNS CGROUP... prints seconds a run. It lives in the cgroup directories that it is given (v1, one
   a controller; it makes and removes none). Pooled: net, uts and cgroup namespaces, a read-only root, no_new_privs,
   an empty bounding set. In every run: three pipes, pid, mount and ipc namespaces, an init that is not the program,
   a tmpfs, exec, the output read to its end, the accounting files read and set back. No user, no seccomp filter,
   no limits, no /proc, no files in or out, no second process to talk to. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(call) do { if ((call) < 0) { perror(#call); _exit(1); } } while (0)

static char init_stack[65536] __attribute__((aligned(64))), program_stack[65536] __attribute__((aligned(64)));
static const char *program;
static int standard[3], status;

static int run_program(void *unused) {
  (void)unused;
  for (int i = 0; i < 3; i++) CHECK(dup2(standard[i], i));
  char *arguments[] = {(char *)program, NULL}, *environment[] = {NULL};
  execve(program, arguments, environment);
  perror(program);
  _exit(127);
}

static int run_init(void *unused) {
  (void)unused;
  CHECK(mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,nr_inodes=4k,mode=1777"));
  pid_t child = clone(run_program, program_stack + sizeof program_stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
  CHECK(child);
  CHECK(waitpid(child, &status, 0));
  _exit(0);
}

static void pool(void) {
  CHECK(unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWCGROUP));
  CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
  /* The program's directory is the root: a static program needs nothing else. */
  char root[4096], *slash;
  snprintf(root, sizeof root, "%s", program);
  slash = strrchr(root, '/');
  *slash = 0;
  program += slash - root;
  CHECK(mount("tmpfs", "/proc", "tmpfs", MS_NOSUID, "size=1m"));
  CHECK(mkdir("/proc/bin", 0755));
  CHECK(mkdir("/proc/tmp", 0755));
  CHECK(mount(root, "/proc/bin", NULL, MS_BIND, NULL));
  CHECK(mount(NULL, "/proc/bin", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL));
  CHECK(mount(NULL, "/proc", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID, NULL));
  CHECK(chdir("/proc"));
  CHECK(syscall(SYS_pivot_root, ".", "."));
  CHECK(umount2(".", MNT_DETACH));
  CHECK(chdir("/"));
  static char inside[4096];
  snprintf(inside, sizeof inside, "/bin%s", program);
  program = inside;
  for (int i = 0; i < 41; i++) prctl(PR_CAPBSET_DROP, i, 0, 0, 0);
  CHECK(setgroups(0, NULL));
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static int accounts[16], resets, readable;

static void enter(const char *directory) {
  static const struct { const char *name; int reset; } files[] = {
    {"memory.max_usage_in_bytes", 1}, {"memory.oom_control", 0}, {"cpuacct.usage", 0}};
  char path[4096];
  snprintf(path, sizeof path, "%s/cgroup.procs", directory);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  CHECK(fd);
  CHECK(write(fd, "0", 1));
  close(fd);
  for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
    snprintf(path, sizeof path, "%s/%s", directory, files[i].name);
    fd = open(path, (files[i].reset ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0) continue;
    if (files[i].reset) resets |= 1 << readable;
    accounts[readable++] = fd;
  }
}

int main(int count, char **words) {
  if (count < 3) return fprintf(stderr, "floor PROGRAM RUNS CGROUP...\n"), 2;
  program = words[1];
  int runs = atoi(words[2]);
  for (int i = 3; i < count; i++) enter(words[i]);
  pool();
  struct timespec start, end;
  char buffer[65536];
  for (int run = -runs / 10; run < runs; run++) {
    if (run == 0) clock_gettime(CLOCK_MONOTONIC, &start);
    int in[2], out[2], err[2];
    CHECK(pipe2(in, O_CLOEXEC));
    CHECK(pipe2(out, O_CLOEXEC));
    CHECK(pipe2(err, O_CLOEXEC));
    standard[0] = in[0], standard[1] = out[1], standard[2] = err[1];
    pid_t init = clone(run_init, init_stack + sizeof init_stack,
                       CLONE_VM | CLONE_VFORK | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | SIGCHLD, NULL);
    CHECK(init);
    close(in[0]), close(in[1]), close(out[1]), close(err[1]);
    while (read(out[0], buffer, sizeof buffer) > 0);
    while (read(err[0], buffer, sizeof buffer) > 0);
    close(out[0]), close(err[0]);
    CHECK(waitpid(init, NULL, 0));
    if (status) return fprintf(stderr, "the program ended with status %x\n", status), 1;
    for (int i = 0; i < readable; i++) {
      CHECK(pread(accounts[i], buffer, 128, 0));
      if (resets >> i & 1) CHECK(pwrite(accounts[i], "0", 1, 0));
    }
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  printf("%.9f\n", (end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9) / runs);
  return 0;
}
