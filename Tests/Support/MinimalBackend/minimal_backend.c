// vhost-user as QEMU's documentation has it (interop/vhost-user). Numbers of messages are the protocol's.
#define _GNU_SOURCE
#include "minimal_backend.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
  get_features = 1, set_features = 2, set_mem_table = 5, set_vring_num = 8, set_vring_addr = 9, set_vring_base = 10, get_vring_base = 11,
  set_vring_kick = 12, set_vring_call = 13, set_vring_err = 14, get_protocol_features = 15, set_slave_req_fd = 21, iotlb = 22, get_config = 24,
  backend_iotlb = 1, miss = 1, update = 2, invalidate = 3,
  version = 1, is_reply = 4, needs_reply = 8, pages = 1 << 20, most_asked = 512,
};

struct translation { uint64_t iova, size, address; uint8_t permission, type, padding[6]; };
struct region { uint64_t guest, size, user, offset; };
struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };
struct message {
  uint32_t request, flags, size;
  union __attribute__((packed)) {
    uint64_t number;
    struct { uint32_t index, value; } state;
    struct __attribute__((packed)) { uint32_t index, flags; uint64_t descriptor, used, available, log; } areas;
    struct __attribute__((packed)) { uint32_t count, padding; struct region regions[8]; } memory;
    struct translation translation;
    struct { uint32_t offset, size, flags; unsigned char bytes[256]; } config;
    unsigned char bytes[512];
  };
} __attribute__((packed));
enum { header = 12 };
static unsigned char buffer[4096];
static size_t filled;
// Descriptors come with the message that they belong to, or before it.
static int waiting_fds[16];
static unsigned fd_count;

static int front = -1, channel = -1, kick = -1;
static struct region regions[8];
static unsigned char *hosts[8];
static unsigned region_count;
// What a page of device addresses is: NULL for what was not asked for, `asked`, or where it is here.
static unsigned char *table[pages];
static unsigned char asked_mark;
#define asked (&asked_mark)
static struct __attribute__((packed)) { uint32_t request, flags, size; struct translation translation; } questions[most_asked];
static unsigned question_count, open_questions;
static uint64_t descriptor_area, available_area, used_area;
static uint16_t queue_size, taken;
static unsigned long questions_asked, updates_told, invalidations_told;

static void fail(const char *what) {
  fprintf(stderr, "least back-end: %s: %s\n", what, strerror(errno));
  _exit(1);
}

static void send_all(int to, const void *bytes, size_t count) {
  if (send(to, bytes, count, MSG_NOSIGNAL) != (ssize_t)count) fail("send");
}

static void answer(struct message *m, uint32_t size) {
  m->flags = version | is_reply;
  m->size = size;
  send_all(front, m, header + size);
}

// Where a byte is here, or NULL after noting the question.
static unsigned char *look(uint64_t iova) {
  uint64_t page = iova >> 12;
  if (page >= pages) { errno = ERANGE; fail("an address"); }
  if (table[page] && table[page] != asked) return table[page] + (iova & 4095);
  if (!table[page] && question_count < most_asked) {
    table[page] = asked;
    questions[question_count].request = backend_iotlb;
    questions[question_count].flags = version;
    questions[question_count].size = sizeof(struct translation);
    // QEMU answers for reading and writing what it is asked for writing; for reading alone it looks up another time.
    questions[question_count++].translation = (struct translation){.iova = page << 12, .permission = 3, .type = miss};
  }
  return NULL;
}

static void *user_address(uint64_t user) {
  for (unsigned i = 0; i < region_count; i++)
    if (user - regions[i].user < regions[i].size) return hosts[i] + regions[i].offset + (user - regions[i].user);
  errno = EFAULT;
  fail("memory that was not shared");
  return NULL;
}

// Does what is there to do, as far as it may be touched; then asks for the rest, all in one piece, with one answer.
static void work(void) {
  unsigned char *d = look(descriptor_area), *a = look(available_area), *u = look(used_area);
  if (d && a && u) {
    const struct descriptor *list = (const void *)d;
    const volatile uint16_t *available = (const void *)a;
    volatile uint16_t *used = (void *)u;
    int is_whole = 1;
    uint16_t end = __atomic_load_n(&available[1], __ATOMIC_ACQUIRE), at = taken;
    for (; at != end; at++) {
      uint16_t head = available[2 + at % queue_size], index = head;
      unsigned char *last = NULL;
      for (;;) {
        last = look(list[index].address);
        if (!last) is_whole = 0;
        if (!(list[index].flags & 1)) break;
        index = list[index].next;
      }
      if (!is_whole) continue;  // what comes later is only asked about
      *last = 0;
      volatile uint32_t *entry = (volatile uint32_t *)(used + 2) + 2 * (at % queue_size);
      entry[0] = head;
      entry[1] = 1;
      taken = at + 1;
    }
    __atomic_store_n(&used[1], taken, __ATOMIC_RELEASE);
  }
  if (!question_count) return;
  questions[question_count - 1].flags |= needs_reply;
  send_all(channel, questions, question_count * sizeof questions[0]);
  open_questions += question_count;
  questions_asked += question_count;
  question_count = 0;
}

static void translated(struct translation t) {
  uint64_t first = t.iova >> 12, last = t.size ? (t.iova + t.size - 1) >> 12 : first;
  if (last >= pages || last < first) last = pages - 1;
  if (t.type == update) {
    for (uint64_t page = first; page <= last; page++) table[page] = user_address(t.address + ((page - first) << 12));
    updates_told++;
    if (open_questions) open_questions--;
  } else if (t.type == invalidate) {
    for (uint64_t page = first; page <= last; page++) if (table[page] != asked) table[page] = NULL;
    invalidations_told++;
  }
}

static int next_fd(void) {
  if (!fd_count) { errno = EBADF; fail("a descriptor"); }
  int fd = waiting_fds[0];
  memmove(waiting_fds, waiting_fds + 1, --fd_count * sizeof(int));
  return fd;
}

static void take(struct message *m) {
  int has_answered = 0;
  switch (m->request) {
    // VERSION_1, ACCESS_PLATFORM and the protocol's own.
    case get_features: m->number = 1ull << 32 | 1ull << 33 | 1ull << 30; answer(m, 8); has_answered = 1; break;
    // REPLY_ACK, BACKEND_REQ, CONFIG.
    case get_protocol_features: m->number = 1 << 3 | 1 << 5 | 1 << 9; answer(m, 8); has_answered = 1; break;
    case get_config: {
      // capacity, blk_size, num_queues
      uint64_t sectors = 2048;
      uint32_t block = 512;
      memset(m->config.bytes, 0, sizeof m->config.bytes);
      memcpy(m->config.bytes, &sectors, 8);
      memcpy(m->config.bytes + 20, &block, 4);
      m->config.bytes[34] = 1;
      answer(m, m->size);
      has_answered = 1;
      break;
    }
    case set_mem_table:
      for (unsigned i = 0; i < region_count; i++) munmap(hosts[i], regions[i].size + regions[i].offset);
      region_count = m->memory.count;
      for (unsigned i = 0; i < region_count; i++) {
        int fd = next_fd();
        regions[i] = m->memory.regions[i];
        hosts[i] = mmap(NULL, regions[i].size + regions[i].offset, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (hosts[i] == MAP_FAILED) fail("mmap");
        close(fd);
      }
      break;
    case set_vring_num: queue_size = (uint16_t)m->state.value; break;
    case set_vring_base: taken = (uint16_t)m->state.value; break;
    case set_vring_addr:
      descriptor_area = m->areas.descriptor;
      available_area = m->areas.available;
      used_area = m->areas.used;
      break;
    case get_vring_base:
      m->state.value = taken;
      if (kick >= 0) close(kick);
      kick = -1;
      answer(m, 8);
      has_answered = 1;
      break;
    case set_vring_kick:
      if (kick >= 0) close(kick);
      kick = next_fd();
      break;
    case set_vring_call:
    // Bit 8: without a descriptor. No call is ever made.
    case set_vring_err: if (!(m->number & 0x100)) close(next_fd()); break;
    case set_slave_req_fd: channel = next_fd(); break;
    case iotlb: translated(m->translation); break;
  }
  if (m->flags & needs_reply && !has_answered) {
    m->number = 0;
    answer(m, 8);
  }
}

// What has come, which mostly is one message: whole ones are taken, the start of another waits for its rest.
static int receive(void) {
  char space[CMSG_SPACE(sizeof waiting_fds)];
  struct iovec part = {buffer + filled, sizeof buffer - filled};
  struct msghdr one = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
  ssize_t n = recvmsg(front, &one, MSG_CMSG_CLOEXEC);
  if (n <= 0) return 0;
  filled += (size_t)n;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&one); c; c = CMSG_NXTHDR(&one, c)) {
    size_t bytes = c->cmsg_len - CMSG_LEN(0);
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || bytes > sizeof waiting_fds - fd_count * sizeof(int)) continue;
    memcpy(waiting_fds + fd_count, CMSG_DATA(c), bytes);
    fd_count += (unsigned)(bytes / sizeof(int));
  }
  size_t at = 0;
  while (filled - at >= header) {
    struct message m;
    memcpy(&m, buffer + at, header);
    if (m.size > sizeof m.bytes) { errno = EPROTO; fail("a message"); }
    if (filled - at < header + m.size) break;
    memcpy(m.bytes, buffer + at + header, m.size);
    at += header + m.size;
    take(&m);
  }
  filled -= at;
  memmove(buffer, buffer + at, filled);
  return 1;
}

int minimal_backend_serve(int connection) {
  front = connection;
  for (;;) {
    struct pollfd all[3] = {{front, POLLIN, 0}, {channel, POLLIN, 0}, {kick, POLLIN, 0}};
    if (poll(all, 3, -1) < 0 && errno != EINTR) return -errno;
    if (all[2].revents & POLLIN) {
      uint64_t count;
      if (read(kick, &count, sizeof count) == sizeof count) work();
    }
    if (all[1].revents & POLLIN) {
      struct { uint32_t request, flags, size; uint64_t status; } __attribute__((packed)) reply;
      if (recv(channel, &reply, sizeof reply, MSG_WAITALL) != sizeof reply) break;
    }
    if (all[0].revents) {
      unsigned before = open_questions;
      if (!receive()) break;
      if (before && !open_questions) work();
    }
  }
  fprintf(stderr, "asked %lu, told %lu, invalidated %lu\n", questions_asked, updates_told, invalidations_told);
  return 0;
}
