// A driver that bypasses the IOMMU: it gives a virtio-blk function physical addresses, as Linux does where
// VIRTIO_F_ACCESS_PLATFORM is not offered, and says whether a byte moved.
//
//   bypass ADDRESS SECTOR    the function's PCI address; the sector to write, whose eight hold one page
//
// One request reads the first page of the disk, one writes a page. Where the function reaches physical memory both end well; behind an
// IOMMU that has nothing mapped none may end, and rings, status bytes and buffers stay as they were.
// Ends with 0 however that went and tells it in one line; with 1 where the function could not be tried; with 4 where it offers the bit.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { pageSize = 4096, queueSize = 8, canary = 0x5a, noAnswer = 0xff };

// A page of each, so that every one has one physical address.
static struct {
  struct vring_desc descriptors[queueSize];
  struct { uint16_t flags, index, ring[queueSize]; } available;
  _Alignas(2048) struct { uint16_t flags, index; struct vring_used_elem ring[queueSize]; } used;
} *ring;
static struct { struct virtio_blk_outhdr out; _Alignas(64) uint8_t status; } *header;
static uint8_t *data;

static volatile struct virtio_pci_common_cfg *common;
static volatile uint16_t *notification;

static void fail(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

static void *page(void) {
  void *new = mmap(NULL, pageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);
  if (new == MAP_FAILED) fail("no memory");
  memset(new, canary, pageSize);
  return new;
}

static uint64_t physical(const volatile void *at) {
  uint64_t entry = 0;
  int map = open("/proc/self/pagemap", O_RDONLY);
  if (map < 0 || pread(map, &entry, sizeof entry, (off_t)((uintptr_t)at / pageSize * sizeof entry)) != sizeof entry) fail("/proc/self/pagemap");
  close(map);
  if (!(entry >> 63)) fail("a page that is not there");
  return (entry & ((1ull << 55) - 1)) * pageSize + (uintptr_t)at % pageSize;
}

// virtio 1.4, section 4.1.4: where the structures are is told by the PCI capabilities.
static void find(const char *address) {
  char path[96];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/config", address);
  int config = open(path, O_RDWR);
  uint16_t command = 0;
  uint8_t at = 0;
  if (config < 0 || pread(config, &command, 2, 4) != 2) fail(path);
  command |= 6;   // memory and bus master
  if (pwrite(config, &command, 2, 4) != 2 || pread(config, &at, 1, 0x34) != 1) fail("the configuration space");
  uint8_t *notify = NULL;
  uint32_t multiplier = 0;
  while (at != 0) {
    struct virtio_pci_notify_cap found;
    if (pread(config, &found, sizeof found, at) != sizeof found) fail("a capability");
    at = found.cap.cap_next;
    if (found.cap.cap_vndr != 9) continue;   // not the vendor's
    if (found.cap.cfg_type != VIRTIO_PCI_CAP_COMMON_CFG && found.cap.cfg_type != VIRTIO_PCI_CAP_NOTIFY_CFG) continue;
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/resource%u", address, found.cap.bar);
    int bar = open(path, O_RDWR);
    struct stat about = {0};
    uint8_t *base = bar < 0 || fstat(bar, &about) != 0 ? MAP_FAILED : mmap(NULL, (size_t)about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, bar, 0);
    if (base == MAP_FAILED) fail(path);
    if (found.cap.cfg_type == VIRTIO_PCI_CAP_COMMON_CFG) common = (void *)(base + found.cap.offset);
    else notify = base + found.cap.offset, multiplier = found.notify_off_multiplier;
  }
  if (!common || !notify) fail("no virtio structures");
  common->queue_select = 0;
  notification = (void *)(notify + common->queue_notify_off * multiplier);
}

static void start(void) {
  common->device_status = 0;
  while (common->device_status != 0) usleep(1000);
  common->device_status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
  common->device_feature_select = 1;
  uint32_t high = common->device_feature;
  if (high & 1u << (VIRTIO_F_ACCESS_PLATFORM - 32)) {
    fprintf(stderr, "VIRTIO_F_ACCESS_PLATFORM is offered\n");
    exit(4);
  }
  common->guest_feature_select = 0;
  common->guest_feature = 0;
  common->guest_feature_select = 1;
  common->guest_feature = 1u << (VIRTIO_F_VERSION_1 - 32);
  common->device_status |= VIRTIO_CONFIG_S_FEATURES_OK;
  if (!(common->device_status & VIRTIO_CONFIG_S_FEATURES_OK)) fail("the function refuses the features");
  memset(ring, 0, pageSize);
  ring->available.flags = VRING_AVAIL_F_NO_INTERRUPT;   // the used ring is polled
  common->queue_select = 0;
  common->queue_size = queueSize;
  uint64_t places[] = {physical(ring->descriptors), physical(&ring->available), physical(&ring->used)};
  common->queue_desc_lo = (uint32_t)places[0], common->queue_desc_hi = (uint32_t)(places[0] >> 32);
  common->queue_avail_lo = (uint32_t)places[1], common->queue_avail_hi = (uint32_t)(places[1] >> 32);
  common->queue_used_lo = (uint32_t)places[2], common->queue_used_hi = (uint32_t)(places[2] >> 32);
  common->queue_enable = 1;
  common->device_status |= VIRTIO_CONFIG_S_DRIVER_OK;
}

// One request of one page; says the status byte, or noAnswer where none came within a second.
static unsigned request(uint32_t type, uint64_t sector) {
  uint16_t done = *(volatile uint16_t *)&ring->used.index;
  header->out = (struct virtio_blk_outhdr){.type = type, .sector = sector};
  header->status = noAnswer;
  ring->descriptors[0] = (struct vring_desc){physical(header), sizeof header->out, VRING_DESC_F_NEXT, 1};
  ring->descriptors[1] = (struct vring_desc){physical(data), pageSize, VRING_DESC_F_NEXT | (type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0), 2};
  ring->descriptors[2] = (struct vring_desc){physical(&header->status), 1, VRING_DESC_F_WRITE, 0};
  ring->available.ring[ring->available.index % queueSize] = 0;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  *(volatile uint16_t *)&ring->available.index += 1;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  *notification = 0;
  for (int tries = 0; tries < 1000 && *(volatile uint16_t *)&ring->used.index == done; tries++) usleep(1000);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return *(volatile uint8_t *)&header->status;
}

static int kept(void) {
  for (int i = 0; i < pageSize; i++) if (data[i] != canary) return 0;
  return 1;
}

int main(int count, char **words) {
  if (count != 3) return 1;
  ring = page(), header = page(), data = page();
  find(words[1]);
  start();
  unsigned read = request(VIRTIO_BLK_T_IN, 0);
  const char *buffer = kept() ? "kept" : "written";
  memset(data, canary, pageSize);
  unsigned written = request(VIRTIO_BLK_T_OUT, strtoull(words[2], NULL, 0));
  printf("read=%u write=%u buffer=%s used=%u device_status=%u\n", read, written, buffer, *(volatile uint16_t *)&ring->used.index, common->device_status);
  // as it was found: no ring of ours may be looked at when this process is gone
  common->device_status = 0;
  return 0;
}
