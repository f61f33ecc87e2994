// Swift's Mutex, as the thread sanitizer understands it. Nothing at all in any other build.
//
// If two threads contend for a Mutex, the kernel changes the lock's word itself: the sanitizer sees neither the acquire
// nor the release, and reports accesses that the lock guards as a race. (Without contention, atomics in the caller's
// own code do it, which it sees.) So the two functions of the standard library that call the kernel are wrapped by two
// that announce their ordering. They announce no more than the lock really orders, so they hide no race.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern void __tsan_acquire(const void *address);
extern void __tsan_release(const void *address);

#define SWIFT __attribute__((swiftcall))
#define SELF __attribute__((swift_context))
#define LOCK_SLOW "$s15Synchronization12_MutexHandleV9_lockSlowyys6UInt32VF"
#define UNLOCK_SLOW "$s15Synchronization12_MutexHandleV11_unlockSlowyyF"

typedef SWIFT void lock_slow(uint32_t owner, SELF const void *word);
typedef SWIFT void unlock_slow(SELF const void *word);

SWIFT void clx_lock_slow(uint32_t owner, SELF const void *word) __asm__(LOCK_SLOW);
SWIFT void clx_unlock_slow(SELF const void *word) __asm__(UNLOCK_SLOW);

static lock_slow *library_lock;
static unlock_slow *library_unlock;

__attribute__((constructor)) static void find(void) {
  library_lock = (lock_slow *)dlsym(RTLD_NEXT, LOCK_SLOW);
  library_unlock = (unlock_slow *)dlsym(RTLD_NEXT, UNLOCK_SLOW);
  if (library_lock == NULL || library_unlock == NULL) {
    fputs("this toolchain's Mutex is another one than the thread sanitizer build expects: see mutex.c\n", stderr);
    abort();
  }
}

SWIFT void clx_lock_slow(uint32_t owner, SELF const void *word) {
  library_lock(owner, word);
  __tsan_acquire(word);
}

SWIFT void clx_unlock_slow(SELF const void *word) {
  __tsan_release(word);
  library_unlock(word);
}

#endif
#endif
