#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* Says BREACH if the call works. */
#define attempt(what, call)                                                                        \
  do {                                                                                             \
    long got_ = (long)(call);                                                                      \
    if (got_ < 0) printf("held: %s -> %s\n", what, strerror(errno));                               \
    else printf("BREACH: %s -> %ld\n", what, got_);                                                \
    fflush(stdout);                                                                                \
  } while (0)

/* Says BREACH too if the call fails for any reason but a refusal: the kernel looked at it. */
#define refused(what, call)                                                                        \
  do {                                                                                             \
    long got_ = (long)(call);                                                                      \
    if (got_ < 0 && (errno == EPERM || errno == ENOSYS))                                           \
      printf("held: %s -> %s\n", what, strerror(errno));                                           \
    else printf("BREACH: %s -> %ld, %s\n", what, got_, got_ < 0 ? strerror(errno) : "done");       \
    fflush(stdout);                                                                                \
  } while (0)

