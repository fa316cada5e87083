/* What the soak runs: one program with many endings. `program ENDING WORD` says WORD first, so that the
   output of one run cannot pass for another's. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <unistd.h>

static void say(const char *word) {
  if (write(1, word, strlen(word)) < 0) _exit(99);
}

int main(int count, char **words) {
  (void)count;
  const char *ending = words[1];
  say(words[2]);
  if (!strcmp(ending, "exit")) return atoi(words[2]) % 100 + 1;
  if (!strcmp(ending, "segv")) raise(SIGSEGV);
  if (!strcmp(ending, "abort")) abort();
  if (!strcmp(ending, "spin")) for (;;) ;
  if (!strcmp(ending, "sleep")) pause();
  if (!strcmp(ending, "flood")) for (;;) say("flood flood flood flood flood flood flood flood");
  if (!strcmp(ending, "memory")) for (;;) memset(malloc(1 << 20), 1, 1 << 20);
  if (!strcmp(ending, "echo")) {
    char block[4096];
    for (ssize_t got; (got = read(0, block, sizeof block)) > 0;)
      if (write(1, block, got) < 0) return 98;
  }
  if (!strcmp(ending, "file")) {
    int fd = open("made", O_WRONLY | O_CREAT, 0644);
    if (fd < 0 || write(fd, words[2], strlen(words[2])) < 0) return 97;
  }
  if (!strcmp(ending, "leave")) { /* as much behind as it can */
    int id = shmget(1, 4096, IPC_CREAT | 0666);
    if (id >= 0) strcpy(shmat(id, 0, 0), words[2]);
    if (open("/tmp/left", O_WRONLY | O_CREAT | O_EXCL, 0666) < 0) return 96;
    if (fork() == 0) { setsid(); pause(); }
  }
  if (!strcmp(ending, "look")) { /* for what one before it has left */
    if (access("/tmp/left", F_OK) == 0 || shmget(1, 4096, 0666) >= 0) return 95;
  }
  return 0;
}
