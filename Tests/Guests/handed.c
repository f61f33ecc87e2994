// A disk handed over: the guest's kernel gives its virtio-blk device to this process through vfio-pci, and the process drives it.
//
//   handed ADDRESS GROUP NAME READ WRITE    the device's PCI address, its IOMMU group, the disk's name in reports; the disk's first
//                                           half is written to the file READ, the file WRITE to its second half
//
// The device reaches only what the process mapped for it, at addresses the process chose, none of which is a physical one. After
// the data come requests whose buffers lie outside, or are mapped for the other direction: they must fail, and leave disk and
// memory as they were.
// Ends with 0 when all was as it must be, and with 4 when the device does not offer VIRTIO_F_ACCESS_PLATFORM: then it would take
// the process's addresses for physical ones, and a process must not drive it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { pageSize = 4096, sectorSize = 512, queueSize = 16, dataSize = 256 * 1024, refused = 4, canary = 0x5a };
enum { noAnswer = -1 };

// What the device may use: three areas that are far from each other and above all of the guest's memory, and one that comes and goes.
static const uint64_t ringAddress = 0x200000000, headerAddress = 0x312345000, dataAddress = 0x500000000, pageAddress = 0x600001000;
static const uint64_t nowhere = 0x7dead0000;

static struct {
  struct vring_desc descriptors[queueSize];
  struct { uint16_t flags, index, ring[queueSize]; } available;
  _Alignas(2048) struct { uint16_t flags, index; struct vring_used_elem ring[queueSize]; } used;
} *ring;
static struct { struct virtio_blk_outhdr out; _Alignas(64) uint8_t status; } *header;
static uint8_t *data, *page;

static const char *name;
static int container, device;
static volatile struct virtio_pci_common_cfg *common;
static volatile struct virtio_blk_config *disk;
static volatile uint16_t *notification;
static uint8_t *notifyArea;
static uint32_t notifyMultiplier;

static void end(int status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, errno ? ": %s\n" : "\n", strerror(errno));
  fflush(stdout);
  _exit(status);
}

// The IOMMU's side: the process maps its memory for the device, at addresses of its own choosing.
static void mapFor(void *memory, uint64_t address, uint64_t size, uint32_t access) {
  struct vfio_iommu_type1_dma_map request = {.argsz = sizeof request, .flags = access, .vaddr = (uintptr_t)memory, .iova = address, .size = size};
  if (ioctl(container, VFIO_IOMMU_MAP_DMA, &request) != 0) end(1, "mapping %#lx", (long)address);
}

static void map(void *memory, uint64_t address, uint64_t size) {
  mapFor(memory, address, size, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE);
}

static void unmap(uint64_t address, uint64_t size) {
  struct vfio_iommu_type1_dma_unmap request = {.argsz = sizeof request, .iova = address, .size = size};
  if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &request) != 0 || request.size != size) end(1, "unmapping %#lx", (long)address);
}

static void *memory(size_t size) {
  void *new = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (new == MAP_FAILED) end(1, "no memory");
  return new;
}

static void openDevice(const char *address, const char *groupNumber) {
  char path[64];
  snprintf(path, sizeof path, "/dev/vfio/%s", groupNumber);
  container = open("/dev/vfio/vfio", O_RDWR);
  int group = open(path, O_RDWR);
  if (container < 0 || group < 0) end(1, "opening %s", path);
  struct vfio_group_status status = {.argsz = sizeof status};
  if (ioctl(group, VFIO_GROUP_GET_STATUS, &status) != 0 || !(status.flags & VFIO_GROUP_FLAGS_VIABLE)) end(1, "the group is not viable");
  if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) != 0) end(1, "joining the container");
  if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU) != 0) end(1, "asking for the IOMMU");
  device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
  if (device < 0) end(1, "opening the device");
}

static struct vfio_region_info region(uint32_t index) {
  struct vfio_region_info info = {.argsz = sizeof info, .index = index};
  if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) != 0) end(1, "no region %u", index);
  return info;
}

// virtio 1.4, section 4.1.4: where the configuration structures are is told by the PCI capabilities.
static void findStructures(void) {
  off_t config = (off_t)region(VFIO_PCI_CONFIG_REGION_INDEX).offset;
  uint16_t command = 0;
  uint8_t at = 0;
  pread(device, &command, 2, config + 4);
  command |= 6;   // memory and bus master
  if (pwrite(device, &command, 2, config + 4) != 2 || pread(device, &at, 1, config + 0x34) != 1) end(1, "the configuration space");
  while (at != 0) {
    struct virtio_pci_notify_cap found;
    if (pread(device, &found, sizeof found, config + at) != sizeof found) end(1, "a capability at %#x", at);
    uint8_t type = found.cap.cfg_type;
    at = found.cap.cap_next;
    if (found.cap.cap_vndr != 9) continue;   // not the vendor's
    if (type != VIRTIO_PCI_CAP_COMMON_CFG && type != VIRTIO_PCI_CAP_NOTIFY_CFG && type != VIRTIO_PCI_CAP_DEVICE_CFG) continue;
    struct vfio_region_info bar = region(found.cap.bar);
    uint8_t *base = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
    if (base == MAP_FAILED) end(1, "mapping BAR %u", found.cap.bar);
    base += found.cap.offset;
    switch (type) {
      case VIRTIO_PCI_CAP_COMMON_CFG: common = (void *)base; break;
      case VIRTIO_PCI_CAP_DEVICE_CFG: disk = (void *)base; break;
      case VIRTIO_PCI_CAP_NOTIFY_CFG: notifyArea = base; notifyMultiplier = found.notify_off_multiplier; break;
    }
  }
  if (common == NULL || disk == NULL || notifyArea == NULL) end(1, "no modern virtio device");
}

static uint64_t offered(void) {
  common->device_feature_select = 0;
  uint64_t low = common->device_feature;
  common->device_feature_select = 1;
  return low | (uint64_t)common->device_feature << 32;
}

// Section 3.1.1: from reset to DRIVER_OK with one queue.
static uint64_t initialise(void) {
  common->device_status = 0;
  while (common->device_status != 0) usleep(1000);
  common->device_status = VIRTIO_CONFIG_S_ACKNOWLEDGE;
  common->device_status |= VIRTIO_CONFIG_S_DRIVER;
  uint64_t features = offered() & (1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_F_ACCESS_PLATFORM);
  if (!(features >> VIRTIO_F_ACCESS_PLATFORM & 1)) {
    common->device_status |= VIRTIO_CONFIG_S_FAILED;
    errno = 0;
    end(refused, "VIRTIO_F_ACCESS_PLATFORM is not offered: the device would take this process's addresses for physical ones");
  }
  if (!(features >> VIRTIO_F_VERSION_1 & 1)) end(1, "VIRTIO_F_VERSION_1 is not offered");
  for (uint32_t half = 0; half < 2; half++) {
    common->guest_feature_select = half;
    common->guest_feature = (uint32_t)(features >> (32 * half));
  }
  common->device_status |= VIRTIO_CONFIG_S_FEATURES_OK;
  if (!(common->device_status & VIRTIO_CONFIG_S_FEATURES_OK)) end(1, "the device does not take these features");
  memset(ring, 0, sizeof *ring);
  ring->available.flags = VRING_AVAIL_F_NO_INTERRUPT;   // the used ring is polled
  common->queue_select = 0;
  common->queue_size = queueSize;
  common->queue_msix_vector = VIRTIO_MSI_NO_VECTOR;
  uint64_t areas[] = {ringAddress, ringAddress + offsetof(typeof(*ring), available), ringAddress + offsetof(typeof(*ring), used)};
  common->queue_desc_lo = (uint32_t)areas[0], common->queue_desc_hi = (uint32_t)(areas[0] >> 32);
  common->queue_avail_lo = (uint32_t)areas[1], common->queue_avail_hi = (uint32_t)(areas[1] >> 32);
  common->queue_used_lo = (uint32_t)areas[2], common->queue_used_hi = (uint32_t)(areas[2] >> 32);
  notification = (void *)(notifyArea + (size_t)common->queue_notify_off * notifyMultiplier);
  common->queue_enable = 1;
  common->device_status |= VIRTIO_CONFIG_S_DRIVER_OK;
  return features;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

// One request with one buffer, anywhere; the status the device gave it, or noAnswer.
static int request(uint32_t type, uint64_t sector, uint64_t address, uint32_t length, double seconds) {
  *header = (typeof(*header)){.out = {.type = type, .sector = sector}, .status = 0xff};
  int count = 0;
  ring->descriptors[count] = (struct vring_desc){headerAddress, sizeof header->out, VRING_DESC_F_NEXT, 1};
  if (length > 0) {
    uint16_t writable = type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0;
    ring->descriptors[++count] = (struct vring_desc){address, length, VRING_DESC_F_NEXT | writable, 2};
  }
  ring->descriptors[++count] = (struct vring_desc){headerAddress + offsetof(typeof(*header), status), 1, VRING_DESC_F_WRITE, 0};
  volatile uint16_t *used = &ring->used.index;
  uint16_t before = *used;
  ring->available.ring[ring->available.index % queueSize] = 0;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  *(volatile uint16_t *)&ring->available.index += 1;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  *notification = 0;
  double until = now() + seconds;
  while (*used == before) {
    if (now() > until || common->device_status & VIRTIO_CONFIG_S_NEEDS_RESET) return noAnswer;
    usleep(50);
  }
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return header->status;
}

static void must(int status, const char *what) {
  errno = 0;
  if (status != VIRTIO_BLK_S_OK) end(1, "%s: status %d, device status %#x", what, status, common->device_status);
}

static int filled(const uint8_t *bytes, uint8_t with) {
  for (int i = 0; i < pageSize; i++) if (bytes[i] != with) return 0;
  return 1;
}

// Where a page of this process is in the guest's memory: an address the device must make nothing of.
static uint64_t physical(const void *of) {
  uint64_t entry = 0;
  int file = open("/proc/self/pagemap", O_RDONLY);
  if (file < 0 || pread(file, &entry, 8, (off_t)((uintptr_t)of / pageSize * 8)) != 8) end(1, "the page map");
  close(file);
  entry &= (1ull << 55) - 1;
  if (entry == 0) end(1, "the page map hides its numbers");
  return entry * pageSize;
}

// A request that must not succeed. Its buffer's real memory, if it has any, is `page`: it must stay as it is. And so must the disk.
static void outside(const char *kind, uint32_t type, uint64_t address, const uint8_t *first) {
  memset(page, canary, pageSize);
  int status = request(type, 0, address, pageSize, 3);
  usleep(100000);   // what came late would be as wrong
  printf("SLUICE-GUEST disk=%s step=outside kind=%s address=%#lx status=%d device_status=%#x canary=%s\n", name, kind, (long)address,
         status, common->device_status, filled(page, canary) ? "kept" : "lost");
  errno = 0;
  if (status == VIRTIO_BLK_S_OK) end(1, "%s: the request succeeded", kind);
  if (!filled(page, canary)) end(1, "%s: the device wrote where it may not", kind);
  if (status == noAnswer) initialise();
  must(request(VIRTIO_BLK_T_IN, 0, dataAddress, pageSize, 20), "reading after a request that failed");
  if (memcmp(data, first, pageSize) != 0) end(1, "%s: the disk changed", kind);
}

static void pause_(const char *at) {
  char line[64];
  printf("SLUICE-GUEST disk=%s pause=%s\n", name, at);
  fflush(stdout);
  if (fgets(line, sizeof line, stdin) == NULL) end(1, "no answer");
}

int main(int count, char **arguments) {
  if (count != 6) { fprintf(stderr, "usage: handed ADDRESS GROUP NAME READ WRITE\n"); return 2; }
  name = arguments[3];
  openDevice(arguments[1], arguments[2]);
  findStructures();
  ring = memory(pageSize), header = memory(pageSize), data = memory(dataSize), page = memory(pageSize);
  map(ring, ringAddress, pageSize), map(header, headerAddress, pageSize), map(data, dataAddress, dataSize);
  uint64_t features = initialise();
  printf("SLUICE-GUEST disk=%s step=handed access_platform=yes ring=split features=", name);
  for (int bit = 0, any = 0; bit < 64; bit++) if (features >> bit & 1) printf(any++ ? ",%d" : "%d", bit);
  printf(" offered=%#lx sectors=%lu\n", (long)offered(), (long)disk->capacity);

  uint64_t half = disk->capacity * sectorSize / 2;
  FILE *read = fopen(arguments[4], "w"), *write = fopen(arguments[5], "r");
  uint8_t first[pageSize];
  if (read == NULL || write == NULL) end(1, "opening the files");
  for (uint64_t at = 0; at < half; at += dataSize) {
    must(request(VIRTIO_BLK_T_IN, at / sectorSize, dataAddress, dataSize, 20), "reading");
    if (at == 0) memcpy(first, data, pageSize);
    if (fwrite(data, dataSize, 1, read) != 1) end(1, "keeping what was read");
  }
  for (uint64_t at = 0; at < half; at += dataSize) {
    if (fread(data, dataSize, 1, write) != 1) end(1, "taking what is to be written");
    must(request(VIRTIO_BLK_T_OUT, (half + at) / sectorSize, dataAddress, dataSize, 20), "writing");
  }
  must(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0, 20), "flushing");
  fclose(read);
  pause_("handed");

  outside("nowhere", VIRTIO_BLK_T_IN, nowhere, first);
  outside("write-from-nowhere", VIRTIO_BLK_T_OUT, nowhere, first);
  outside("physical", VIRTIO_BLK_T_IN, physical(page), first);
  // one that the device has just used, and no longer may
  map(page, pageAddress, pageSize);
  must(request(VIRTIO_BLK_T_IN, 0, pageAddress, pageSize, 20), "reading into the page");
  if (memcmp(page, first, pageSize) != 0) end(1, "the page holds something else");
  unmap(pageAddress, pageSize);
  outside("withdrawn", VIRTIO_BLK_T_IN, pageAddress, first);
  // one that the device has just read, and may not write: what it is given to write is what the disk holds there
  must(request(VIRTIO_BLK_T_IN, half / sectorSize, dataAddress, pageSize, 20), "reading what is to be written");
  memcpy(page, data, pageSize);
  mapFor(page, pageAddress, pageSize, VFIO_DMA_MAP_FLAG_READ);
  must(request(VIRTIO_BLK_T_OUT, half / sectorSize, pageAddress, pageSize, 20), "writing from a page that may be read");
  outside("read-only", VIRTIO_BLK_T_IN, pageAddress, first);
  unmap(pageAddress, pageSize);
  // and one that it has just written, and may not read
  mapFor(page, pageAddress, pageSize, VFIO_DMA_MAP_FLAG_WRITE);
  must(request(VIRTIO_BLK_T_IN, 0, pageAddress, pageSize, 20), "reading into a page that may be written");
  if (memcmp(page, first, pageSize) != 0) end(1, "the page that may be written holds something else");
  outside("write-only", VIRTIO_BLK_T_OUT, pageAddress, first);
  unmap(pageAddress, pageSize);
  pause_("outside");
  common->device_status = 0;
  return 0;
}
