// Blocks written again and again with growing numbers: the witness of what was lost, done late or done twice. In the guest (write)
// and on the host (check).
//
//   sequence write DEVICE NAME THREADS COUNT ARENA
//       Each thread overwrites the 64 blocks of its own window in turn, one request at a time, with O_DIRECT, going on where the
//       disk says that the last writer was, until every thread has written COUNT blocks, or with COUNT 0 until a line arrives on
//       standard input. Before that the windows are looked at twice: what changes with no writer is a late write.
//       One more thread reads fixed blocks behind the windows into ARENA MiB of memory and looks again and again whether they are
//       still there: what was read before a migration must be in memory after it. "ack disk=NAME T=N ..." says that thread T's
//       blocks up to N were completed. Status 3: the disk went away (EIO, ENXIO, ENODEV, ENOSPC, no byte); 1: something is wrong.
//   sequence check IMAGE NAME THREADS
//       Reads those lines on standard input and looks whether the image holds what such writers leave, and nothing older than
//       what they were told was done.
//
// A block names its thread, its number, its generation (how many writers there were) and that generation's first number, and the
// rest is made from them: of a window that one writer after the other wrote in order exactly one state is possible for a newest
// number, so a lost, stale, torn, repeated or late write shows.
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
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { blockSize = 4096, words = blockSize / 8, maxThreads = 32, window = 64, fixedBlocks = 2048, fixedThread = 255 };
enum { placeThread, placeNumber, placeGeneration, placeFirst, placeRest };

static int threads;
static const char *device, *name;
static long limit;
static atomic_long completed[maxThreads];   // the highest number written and acknowledged, per thread
static atomic_int stopping, gone, failed;
static struct state { long newest, generation, first; } start[maxThreads];
static uint64_t *arena;
static long arenaBlocks, arenaReads, arenaLooks;

static uint64_t word(const uint64_t *block, int place) {
  uint64_t x = block[placeNumber] * 0x9e3779b97f4a7c15u + block[placeThread] * 0xbf58476d1ce4e5b9u + block[placeGeneration] * 0xd6e8feb86659fd93u;
  x += block[placeFirst] * 0xa0761d6478bd642fu + (uint64_t)place;
  x ^= x >> 31;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 29);
}

static void fill(uint64_t *block, int thread, long number, long generation, long first) {
  block[placeThread] = (uint64_t)thread + 1;
  block[placeNumber] = (uint64_t)number;
  block[placeGeneration] = (uint64_t)generation;
  block[placeFirst] = (uint64_t)first;
  for (int i = placeRest; i < words; i++) block[i] = word(block, i);
}

// Whole, and of this thread.
static int isWhole(const uint64_t *block, int thread) {
  if (block[placeThread] != (uint64_t)thread + 1) return 0;
  for (int i = placeRest; i < words; i++) if (block[i] != word(block, i)) return 0;
  return 1;
}

static int isEmpty(const uint64_t *block) {
  for (int i = 0; i < words; i++) if (block[i] != 0) return 0;
  return 1;
}

static off_t offset(int thread, long number) { return ((off_t)thread * window + number % window) * blockSize; }
static off_t fixedOffset(long number) { return ((off_t)threads * window + number) * blockSize; }

static void complain(const char *what, int thread, long number, const char *more) {
  printf("SLUICE-GUEST error disk=%s %s thread=%d block=%ld %s\n", name, what, thread, number, more);
  fflush(stdout);
  atomic_store(&failed, 1);
}

// Whether an error says that the disk is no more. One that is being taken away has no sectors left before it is gone.
static int isGone(int error) { return error == EIO || error == ENXIO || error == ENODEV || error == ENOSPC; }

static int transfer(int fd, void *block, off_t at, int writes, const char *what, int thread, long number) {
  ssize_t done = writes ? pwrite(fd, block, blockSize, at) : pread(fd, block, blockSize, at);
  if (done == blockSize) return 1;
  if (done == 0 || (done < 0 && isGone(errno))) atomic_store(&gone, 1);
  else complain(what, thread, number, done < 0 ? strerror(errno) : "it was cut short");
  return 0;
}

// What a window says, and whether it can be what writers in order leave.
static int look(int fd, int thread, struct state *state) {
  static _Thread_local uint64_t *blocks;
  if (blocks == NULL) blocks = aligned_alloc(blockSize, window * blockSize);
  *state = (struct state){.newest = -1, .generation = 0, .first = 0};
  for (long slot = 0; slot < window; slot++) {
    uint64_t *block = blocks + slot * words;
    if (!transfer(fd, block, offset(thread, slot), 0, "read", thread, slot)) return 0;
    if (isEmpty(block)) continue;
    if (!isWhole(block, thread)) { complain("torn", thread, slot, "no block that was written"); return 0; }
    if ((long)block[placeNumber] <= state->newest) continue;
    state->newest = (long)block[placeNumber];
    state->generation = (long)block[placeGeneration];
    state->first = (long)block[placeFirst];
  }
  for (long slot = 0; slot < window; slot++) {
    uint64_t *block = blocks + slot * words;
    long want = state->newest - (state->newest - slot) % window;
    if (slot > state->newest) want = slot - window;
    while (want > state->newest) want -= window;
    char text[96];
    snprintf(text, sizeof text, "slot=%ld holds=%ld generation=%ld newest=%ld/%ld", slot, isEmpty(block) ? -1 : (long)block[placeNumber],
             (long)block[placeGeneration], state->newest, state->generation);
    if (want < 0 ? !isEmpty(block) : isEmpty(block) || (long)block[placeNumber] != want) { complain("order", thread, want, text); return 0; }
    if (want < 0) continue;
    int isNew = want >= state->first;
    if (isNew != ((long)block[placeGeneration] == state->generation)) { complain("generation", thread, want, text); return 0; }
  }
  return 1;
}

static void *work(void *argument) {
  int thread = (int)(intptr_t)argument;
  int fd = open(device, O_RDWR | O_DIRECT);
  uint64_t *block = aligned_alloc(blockSize, blockSize);
  if (fd < 0 || block == NULL) {
    if (fd < 0 && isGone(errno)) atomic_store(&gone, 1); else complain("open", thread, 0, strerror(errno));
    return NULL;
  }
  long first = start[thread].newest + 1, generation = start[thread].generation + 1;
  for (long number = first; !atomic_load(&stopping) && !atomic_load(&failed) && !atomic_load(&gone); number++) {
    if (limit > 0 && number - first >= limit) break;
    fill(block, thread, number, generation, first);
    if (!transfer(fd, block, offset(thread, number), 1, "write", thread, number)) break;
    atomic_store(&completed[thread], number);
    if (number % 8 != 7) continue;
    // one of the last, and not the newest
    long earlier = number - 1 - (long)(block[placeRest] % (window - 2));
    if (earlier < 0) continue;
    if (!transfer(fd, block, offset(thread, earlier), 0, "read", thread, earlier)) break;
    if (!isWhole(block, thread) || (long)block[placeNumber] != earlier) complain("read", thread, earlier, "holds something else");
  }
  close(fd);
  return NULL;
}

// The fixed block that a place of the arena got last; 0 is none.
static uint16_t *lastRead;

static void lookAt(long place) {
  arenaLooks++;
  uint64_t *block = arena + place * words;
  if (lastRead[place] == 0) return;
  if (!isWhole(block, fixedThread) || block[placeNumber] != (uint64_t)(lastRead[place] - 1))
    complain("memory", fixedThread, lastRead[place] - 1, "what was read is no longer in memory");
}

static void *readAlong(void *argument) {
  (void)argument;
  int fd = open(device, O_RDONLY | O_DIRECT);
  uint64_t random = 88172645463325252u;
  while (fd >= 0 && !atomic_load(&stopping) && !atomic_load(&failed) && !atomic_load(&gone)) {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    long place = (long)(random % (uint64_t)arenaBlocks), number = (long)((random >> 32) % fixedBlocks);
    // what is overwritten unseen could have been wrong for as long as it was there
    lookAt(place);
    if (!transfer(fd, arena + place * words, fixedOffset(number), 0, "read", fixedThread, number)) {
      lastRead[place] = 0;
      break;
    }
    lastRead[place] = (uint16_t)(number + 1);
    arenaReads++;
    lookAt((long)((random >> 16) % (uint64_t)arenaBlocks));
  }
  for (long place = 0; place < arenaBlocks; place++) lookAt(place);
  if (fd >= 0) close(fd);
  return NULL;
}

// Pages of the arena whose guest-physical address is beyond 4 GiB.
static long highPages(void) {
  int fd = open("/proc/self/pagemap", O_RDONLY);
  long high = 0;
  uint64_t entry;
  for (long i = 0; fd >= 0 && i < arenaBlocks; i++) {
    uintptr_t page = (uintptr_t)(arena + i * words) / blockSize;
    if (pread(fd, &entry, 8, (off_t)page * 8) == 8 && (entry >> 63) != 0 && (entry & ((1ull << 55) - 1)) >= (1ull << 20)) high++;
  }
  if (fd >= 0) close(fd);
  return high;
}

static void acknowledge(long *reported) {
  char line[2048];
  int used = snprintf(line, sizeof line, "SLUICE-GUEST ack disk=%s", name), any = 0;
  for (int t = 0; t < threads; t++) {
    long now = atomic_load(&completed[t]);
    if (now == reported[t]) continue;
    used += snprintf(line + used, sizeof line - (size_t)used, " %d=%ld", t, now);
    reported[t] = now;
    any = 1;
  }
  if (any) { puts(line); fflush(stdout); }
}

static int prepare(void) {
  int fd = open(device, O_RDWR | O_DIRECT);
  if (fd < 0) { perror(device); return isGone(errno) ? 3 : 1; }
  struct state again;
  for (int t = 0; t < threads; t++) if (!look(fd, t, &start[t])) return atomic_load(&gone) ? 3 : 1;
  usleep(200000);
  for (int t = 0; t < threads; t++) {
    if (!look(fd, t, &again)) return atomic_load(&gone) ? 3 : 1;
    if (memcmp(&again, &start[t], sizeof again) != 0) { complain("late", t, again.newest, "written with no writer"); return 1; }
  }
  if (arenaBlocks > 0) {
    arena = mmap(NULL, (size_t)arenaBlocks * blockSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    lastRead = calloc((size_t)arenaBlocks, sizeof *lastRead);
    if (arena == MAP_FAILED || lastRead == NULL) { perror("memory"); return 1; }
    for (long n = 0; n < fixedBlocks; n++) {
      fill(arena, fixedThread, n, 1, 0);
      if (!transfer(fd, arena, fixedOffset(n), 1, "write", fixedThread, n)) return atomic_load(&gone) ? 3 : 1;
    }
  }
  close(fd);
  long sum = 0, generation = 0;
  for (int t = 0; t < threads; t++) { sum += start[t].newest + 1; if (start[t].generation > generation) generation = start[t].generation; }
  printf("SLUICE-GUEST begin disk=%s generation=%ld found=%ld high_pages=%ld\n", name, generation + 1, sum, arena ? highPages() : 0);
  fflush(stdout);
  return 0;
}

static int writing(void) {
  pthread_t ids[maxThreads], reader;
  long reported[maxThreads];
  int status = prepare();
  if (status != 0) return status;
  for (int t = 0; t < threads; t++) {
    reported[t] = start[t].newest;
    atomic_store(&completed[t], start[t].newest);
    pthread_create(&ids[t], NULL, work, (void *)(intptr_t)t);
  }
  if (arenaBlocks > 0) pthread_create(&reader, NULL, readAlong, NULL);
  struct pollfd input = {.fd = limit > 0 ? -1 : 0, .events = POLLIN};
  while (poll(&input, 1, 50) == 0 && !atomic_load(&failed) && !atomic_load(&gone)) {
    acknowledge(reported);
    int busy = 0;
    for (int t = 0; t < threads; t++) if (reported[t] + 1 < start[t].newest + 1 + limit) busy = 1;
    if (limit > 0 && !busy) break;
  }
  atomic_store(&stopping, 1);
  for (int t = 0; t < threads; t++) pthread_join(ids[t], NULL);
  if (arenaBlocks > 0) pthread_join(reader, NULL);
  acknowledge(reported);
  printf("SLUICE-GUEST end disk=%s gone=%d failed=%d arena_reads=%ld arena_looks=%ld\n", name, atomic_load(&gone), atomic_load(&failed), arenaReads, arenaLooks);
  fflush(stdout);
  return atomic_load(&failed) ? 1 : atomic_load(&gone) ? 3 : 0;
}

static int checking(void) {
  long last[maxThreads], acknowledged = 0, generations = 0;
  char line[8192], wanted[128];
  snprintf(wanted, sizeof wanted, "SLUICE-GUEST ack disk=%s ", name);
  for (int t = 0; t < threads; t++) last[t] = -1;
  while (fgets(line, sizeof line, stdin)) {
    char *at = strstr(line, wanted);
    if (at == NULL) continue;
    at += strlen(wanted);
    int thread, used;
    long number;
    while (sscanf(at, "%d=%ld%n", &thread, &number, &used) == 2) {
      if (thread < 0 || thread >= threads || number <= last[thread]) { printf("unreadable, or out of order: %s", line); return 2; }
      last[thread] = number;
      at += used;
    }
  }
  int fd = open(device, O_RDONLY);
  if (fd < 0) { perror(device); return 2; }
  for (int t = 0; t < threads; t++) {
    struct state state;
    if (!look(fd, t, &state)) return 1;
    if (state.newest < last[t]) complain("lost", t, last[t], "acknowledged and not in the image");
    if (state.generation > generations) generations = state.generation;
    acknowledged += last[t] + 1;
  }
  printf("%ld writes acknowledged, %ld generations, %s\n", acknowledged, generations, atomic_load(&failed) ? "some lost" : "none lost, late or out of order");
  return atomic_load(&failed) || acknowledged == 0;
}

int main(int count, char **arguments) {
  int writes = count == 7 && strcmp(arguments[1], "write") == 0;
  if (!writes && !(count == 5 && strcmp(arguments[1], "check") == 0)) {
    fprintf(stderr, "usage: sequence write DEVICE NAME THREADS COUNT ARENA | check IMAGE NAME THREADS\n");
    return 2;
  }
  device = arguments[2], name = arguments[3], threads = atoi(arguments[4]);
  if (threads < 1 || threads > maxThreads) return 2;
  if (!writes) return checking();
  limit = atol(arguments[5]), arenaBlocks = atol(arguments[6]) * 256;
  return writing();
}
