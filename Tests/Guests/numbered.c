// Numbered blocks: the witness of the kill -9 test. Runs in the guest (write) and on the host (check).
//
//   numbered write DEVICE THREADS     each thread writes blocks 0, 1, 2 ... of its own column with O_DIRECT and O_DSYNC, and reads
//                                     an earlier one of its own back now and then, until a line arrives on standard input;
//                                     "SLUICE-GUEST ack T=N ..." says that thread T's blocks up to N were completed
//   numbered make - SEED              writes 1024 such blocks to standard output, cheaper than random bytes under emulation
//   numbered check IMAGE THREADS      reads those lines on standard input and looks for every acknowledged block in the image
//
// Every 64-bit word of a block is made from its thread, its number and the word's place, so a lost, stale, torn or misplaced
// block cannot pass for the right one.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { blockSize = 4096, words = blockSize / 8, maxThreads = 64 };

static int threads;
static const char *device;
static atomic_long completed[maxThreads];   // blocks written and acknowledged, per thread
static atomic_int stopping, failed;

static uint64_t word(int thread, long number, int place) {
  uint64_t x = (uint64_t)number * 0x9e3779b97f4a7c15u + (uint64_t)thread * 0xbf58476d1ce4e5b9u + (uint64_t)place + 1;
  x ^= x >> 31;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 29);
}

static void fill(uint64_t *block, int thread, long number) {
  for (int i = 0; i < words; i++) block[i] = word(thread, number, i);
}

static int holds(const uint64_t *block, int thread, long number) {
  for (int i = 0; i < words; i++) if (block[i] != word(thread, number, i)) return 0;
  return 1;
}

static off_t offset(int thread, long number) { return ((off_t)number * threads + thread) * blockSize; }

static void *work(void *argument) {
  int thread = (int)(intptr_t)argument;
  int fd = open(device, O_RDWR | O_DIRECT | O_DSYNC);
  uint64_t *block = aligned_alloc(blockSize, blockSize);
  if (fd < 0 || block == NULL) { atomic_store(&failed, 1); return NULL; }
  for (long number = 0; !atomic_load(&stopping) && !atomic_load(&failed); number++) {
    fill(block, thread, number);
    if (pwrite(fd, block, blockSize, offset(thread, number)) != blockSize) {
      printf("SLUICE-GUEST error write thread=%d block=%ld %s\n", thread, number, strerror(errno));
      atomic_store(&failed, 1);
      break;
    }
    atomic_store(&completed[thread], number + 1);
    if (number % 16 == 15) {
      long earlier = (long)(word(thread, number, -1) % (uint64_t)number);
      if (pread(fd, block, blockSize, offset(thread, earlier)) != blockSize || !holds(block, thread, earlier)) {
        printf("SLUICE-GUEST error read thread=%d block=%ld after=%ld\n", thread, earlier, number);
        atomic_store(&failed, 1);
      }
    }
  }
  return NULL;
}

static void acknowledge(long *reported) {
  int any = 0;
  for (int t = 0; t < threads; t++) {
    long now = atomic_load(&completed[t]);
    if (now == reported[t]) continue;
    printf(any ? " %d=%ld" : "SLUICE-GUEST ack %d=%ld", t, now - 1);
    reported[t] = now;
    any = 1;
  }
  if (any) printf("\n");
  fflush(stdout);
}

static int writing(void) {
  pthread_t ids[maxThreads];
  long reported[maxThreads] = {0};
  for (int t = 0; t < threads; t++) pthread_create(&ids[t], NULL, work, (void *)(intptr_t)t);
  struct pollfd input = {.fd = 0, .events = POLLIN};
  while (poll(&input, 1, 50) == 0 && !atomic_load(&failed)) acknowledge(reported);
  atomic_store(&stopping, 1);
  for (int t = 0; t < threads; t++) pthread_join(ids[t], NULL);
  acknowledge(reported);
  return atomic_load(&failed);
}

static int checking(void) {
  long last[maxThreads], acknowledged = 0, lost = 0;
  for (int t = 0; t < threads; t++) last[t] = -1;
  char line[8192];
  while (fgets(line, sizeof line, stdin)) {
    char *at = strstr(line, "SLUICE-GUEST ack ");
    if (at == NULL) continue;
    at += strlen("SLUICE-GUEST ack ");
    int thread, used;
    long number;
    while (sscanf(at, "%d=%ld%n", &thread, &number, &used) == 2) {
      if (thread < 0 || thread >= threads || number < last[thread]) { fprintf(stderr, "numbered: unreadable: %s", line); return 2; }
      last[thread] = number;
      at += used;
    }
  }
  int fd = open(device, O_RDONLY);
  if (fd < 0) { perror(device); return 2; }
  uint64_t block[words];
  for (int t = 0; t < threads; t++) {
    for (long n = 0; n <= last[t]; n++) {
      acknowledged++;
      if (pread(fd, block, blockSize, offset(t, n)) == blockSize && holds(block, t, n)) continue;
      if (lost++ < 10) fprintf(stderr, "numbered: acknowledged but not in the image: thread %d block %ld\n", t, n);
    }
  }
  printf("%ld acknowledged, %ld lost\n", acknowledged, lost);
  return lost > 0 || acknowledged == 0;
}

static int making(long seed) {
  uint64_t block[words];
  for (long n = 0; n < 1024; n++) {
    fill(block, 0, seed * 1024 + n);
    if (fwrite(block, blockSize, 1, stdout) != 1) return 1;
  }
  return fflush(stdout) != 0;
}

int main(int count, char **arguments) {
  if (count == 4 && strcmp(arguments[1], "make") == 0) return making(atol(arguments[3]));
  if (count != 4 || (threads = atoi(arguments[3])) < 1 || threads > maxThreads) {
    fprintf(stderr, "usage: numbered write|check DEVICE THREADS, numbered make - SEED\n");
    return 2;
  }
  device = arguments[2];
  return strcmp(arguments[1], "write") == 0 ? writing() : checking();
}
