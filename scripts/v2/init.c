/* The first process of the machine that scripts/test_v2.sh boots: loads modules, puts a writable view over the
   host's root, mounts what a system has, and runs the script K15_RUN there. It ends the machine. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(const char *why) {
  if (why) perror(why);
  sync();
  reboot(RB_POWER_OFF);
  for (;;) pause();
}

static void must(int result, const char *what) {
  if (result < 0) end(what);
}

int main(void) {
  char name[256];
  FILE *modules = fopen("/modules", "r");
  if (!modules) end("/modules");
  while (fscanf(modules, "%255s", name) == 1) {
    int fd = open(name, O_RDONLY);
    if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0) perror(name);
    close(fd);
  }
  if (!getenv("K15_RUN")) {
    puts("k15-v2: up");
    end(NULL);
  }
  const char *folders[] = {"/host", "/top", "/root", NULL};
  for (int i = 0; folders[i]; i++) mkdir(folders[i], 0755);
  must(mount("host", "/host", "9p", MS_RDONLY, "trans=virtio,version=9p2000.L,msize=262144,cache=loose"), "the host's root");
  must(mount("top", "/top", "tmpfs", 0, "mode=755"), "a tmpfs");
  mkdir("/top/upper", 0755);
  mkdir("/top/work", 0755);
  must(mount("root", "/root", "overlay", 0, "lowerdir=/host,upperdir=/top/upper,workdir=/top/work"), "the root");
  must(chdir("/root"), "/root");
  must(mount("proc", "proc", "proc", 0, NULL), "/proc");
  must(mount("sysfs", "sys", "sysfs", 0, NULL), "/sys");
  must(mount("devtmpfs", "dev", "devtmpfs", 0, NULL), "/dev");
  mkdir("dev/shm", 01777);
  must(mount("cgroup2", "sys/fs/cgroup", "cgroup2", 0, "nsdelegate"), "cgroup v2");
  const char *fresh[] = {"run", "tmp", NULL};
  for (int i = 0; fresh[i]; i++) must(mount("tmpfs", fresh[i], "tmpfs", 0, "mode=1777"), fresh[i]);
  // As the first of all roots: a process in a mere chroot would see paths that begin at the old one.
  must(mount(".", "/", NULL, MS_MOVE, NULL), "the new root");
  must(chroot("."), "chroot");
  if (fork() == 0) {
    setsid();
    execl("/bin/bash", "bash", getenv("K15_RUN"), (char *)NULL);
    end("/bin/bash");
  }
  while (wait(NULL) > 0) continue;
  end(NULL);
}
