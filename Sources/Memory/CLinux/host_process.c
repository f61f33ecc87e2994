#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>

#include "host.h"

extern char **environ;

int host_process_start(const char *words, size_t count, int output, int32_t *process) {
  char **arguments = calloc(count + 1, sizeof *arguments);
  if (!arguments) return -ENOMEM;
  for (size_t i = 0; i < count; i++) {
    arguments[i] = (char *)words;
    words += strlen(words) + 1;
  }
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&files);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&files, output, 1);
  posix_spawn_file_actions_adddup2(&files, output, 2);
  // Signals that this process ignores (a pipe without a reader) must have their default action in the new one.
  sigset_t defaults, none;
  sigemptyset(&none);
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  pid_t pid = -1;
  int error = posix_spawnp(&pid, arguments[0], &files, &attributes, arguments, environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  free(arguments);
  if (error) return -error;
  *process = pid;
  return 0;
}

int host_process_look(int32_t process, int32_t *status, int32_t *signal) {
  int word = 0;
  pid_t pid;
  do pid = waitpid(process, &word, WNOHANG);
  while (pid < 0 && errno == EINTR);
  if (pid < 0) return -errno;
  if (pid == 0) return 0;
  *status = WIFEXITED(word) ? WEXITSTATUS(word) : 0;
  *signal = WIFSIGNALED(word) ? WTERMSIG(word) : 0;
  return 1;
}

int host_process_signal(int32_t process, int signal) { return kill(process, signal) < 0 ? -errno : 0; }
