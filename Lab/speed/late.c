// A file that answers late, for other processes: `late BYTES MILLISECONDS` prints its path, and the file is there as long as
// this process is. It takes root and /dev/fuse. Compiled by storage.sh, with the tests' file system.
#include "slow_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **words) {
  if (count != 3) return 2;
  unsigned delay = (unsigned)strtoul(words[2], NULL, 10);
  int number = slow_files_start(strtoull(words[1], NULL, 10), delay, delay, delay);
  if (number < 0) {
    fprintf(stderr, "no file system in user space to be had: %s\n", strerror(-number));
    return 1;
  }
  printf("/proc/%d/fd/%d/disk\n", getpid(), slow_files_root(number));
  fflush(stdout);
  for (;;) pause();
}
