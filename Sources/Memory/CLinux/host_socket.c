// Unix stream sockets, and the directories their files live in.
#define _GNU_SOURCE
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define RESULT(call) ({ __typeof__(call) r = (call); r < 0 ? -errno : r; })

int host_unix_socket(void) { return RESULT(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)); }

int host_unix_pair(int *first, int *second) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) return -errno;
  *first = pair[0];
  *second = pair[1];
  return 0;
}

static int address_of(const char *path, struct sockaddr_un *address) {
  size_t length = strlen(path);
  if (length == 0) return -ENOENT;
  if (length >= sizeof address->sun_path) return -ENAMETOOLONG;
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  memcpy(address->sun_path, path, length + 1);
  return 0;
}

int host_unix_bind(int fd, const char *path) {
  struct sockaddr_un address;
  int error = address_of(path, &address);
  return error ? error : RESULT(bind(fd, (struct sockaddr *)&address, sizeof address));
}

int host_unix_connect(int fd, const char *path) {
  struct sockaddr_un address;
  int error = address_of(path, &address);
  if (error) return error;
  int r;
  do r = connect(fd, (struct sockaddr *)&address, sizeof address);
  while (r < 0 && errno == EINTR);
  return r < 0 ? -errno : 0;
}

int host_listen(int fd, int backlog) { return RESULT(listen(fd, backlog)); }

int host_accept(int fd) {
  for (;;) {
    int r = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    if (r >= 0) return r;
    if (errno != EINTR && errno != ECONNABORTED) return -errno;
  }
}

static int integer_option(int fd, int option) {
  int value = 0;
  socklen_t length = sizeof value;
  return getsockopt(fd, SOL_SOCKET, option, &value, &length) < 0 ? -errno : value;
}

int host_socket_listens(int fd) { return integer_option(fd, SO_ACCEPTCONN); }

int host_socket_is_unix_stream(int fd) {
  int domain = integer_option(fd, SO_DOMAIN), type = integer_option(fd, SO_TYPE);
  if (domain < 0) return domain;
  return domain == AF_UNIX && type == SOCK_STREAM;
}

int host_socket_peer(int fd, int32_t *process, uint32_t *user, uint32_t *group) {
  struct ucred peer;
  socklen_t length = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0) return -errno;
  *process = peer.pid;
  *user = peer.uid;
  *group = peer.gid;
  return 0;
}

int host_socket_shutdown(int fd) { return RESULT(shutdown(fd, SHUT_RDWR)); }

int host_socket_pending(int fd) {
  int count = 0;
  return ioctl(fd, FIONREAD, &count) < 0 ? -errno : count;
}

union control {
  char bytes[CMSG_SPACE(sizeof(int) * HOST_MAX_PASSED)];
  struct cmsghdr alignment;
};

ssize_t host_send(int fd, const void *bytes, size_t count, const int *fds, int passed) {
  if (passed < 0 || passed > HOST_MAX_PASSED) return -EINVAL;
  struct iovec data = {.iov_base = (void *)bytes, .iov_len = count};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
  union control control;
  if (passed > 0) {
    memset(&control, 0, sizeof control);
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)passed);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)passed);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * (size_t)passed);
  }
  for (;;) {
    ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

ssize_t host_peek(int fd, void *bytes, size_t count) {
  ssize_t n;
  do n = recv(fd, bytes, count, MSG_DONTWAIT | MSG_PEEK);
  while (n < 0 && errno == EINTR);
  return n < 0 ? -errno : n;
}

ssize_t host_receive(int fd, void *bytes, size_t count, int *fds, int *received, int *truncated) {
  struct iovec data = {.iov_base = bytes, .iov_len = count};
  union control control;
  struct msghdr message = {
      .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
  ssize_t n;
  do n = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  while (n < 0 && errno == EINTR);
  *received = 0;
  *truncated = 0;
  if (n < 0) return -errno;
  *truncated = (message.msg_flags & MSG_CTRUNC) != 0;
  for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t here = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < here; i++) {
      int one;
      memcpy(&one, CMSG_DATA(header) + i * sizeof one, sizeof one);
      if (*received < HOST_MAX_PASSED) {
        fds[(*received)++] = one;
      } else {
        close(one);
        *truncated = 1;
      }
    }
  }
  if (*truncated) {
    while (*received > 0) close(fds[--*received]);
  }
  return n;
}

// Paths

int host_kind(uint32_t mode) {
  return S_ISREG(mode)    ? HOST_KIND_REGULAR
         : S_ISBLK(mode)  ? HOST_KIND_BLOCK
         : S_ISDIR(mode)  ? HOST_KIND_DIRECTORY
         : S_ISSOCK(mode) ? HOST_KIND_SOCKET
                          : HOST_KIND_OTHER;
}

int host_path_identity(const char *path, struct host_identity *identity) {
  struct stat s;
  if (lstat(path, &s) < 0) return -errno;
  identity->device = s.st_dev;
  identity->inode = s.st_ino;
  identity->mode = s.st_mode;
  return 0;
}

int host_unlink(const char *path) { return RESULT(unlink(path)); }

int host_lock_parent(const char *path) {
  char copy[PATH_MAX];
  if (strlen(path) >= sizeof copy) return -ENAMETOOLONG;
  strcpy(copy, path);
  int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -errno;
  if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}
