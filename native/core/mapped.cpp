#include "mapped.h"

#if defined(__linux__) || defined(__APPLE__)
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "memory.h"

namespace ansatz {
namespace {

// What is mapped, for the signal handler: it may take no lock and allocate nothing. A slot whose `bytes` is 0 is free.
struct Slot {
  std::atomic<uintptr_t> first{0};
  std::atomic<int64_t> bytes{0};
  char path[512];
};
constexpr int slots_count = 256;
Slot slots[slots_count];
std::mutex mutex;
struct sigaction previous;

void say(const char* text) {
  const ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
  (void)ignored;
}

// A page of a mapping that has no file behind it any more. There is nothing to go on with: the values are gone.
void on_bus_error(int signal, siginfo_t* info, void* context) {
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Slot& slot : slots) {
    const int64_t bytes = slot.bytes.load(std::memory_order_acquire);
    const uintptr_t first = slot.first.load(std::memory_order_relaxed);
    if (bytes == 0 || at < first || at - first >= static_cast<uintptr_t>(bytes)) continue;
    say("error: ");
    say(slot.path);
    say(": was cut short, or cannot be read, while its weights were in use\n  next: restore the file and start again\n");
    _exit(74);   // EX_IOERR
  }
  if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(signal, info, context);
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
  sigaction(SIGBUS, &previous, nullptr);   // the access is repeated, and ends the process as it always did
}

void install_handler() {
  static bool done = false;
  if (done) return;
  done = true;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &previous);
}

constexpr int64_t huge = int64_t(2) << 20;

// Maps at a multiple of 2 MiB, so that file pages which the kernel keeps in huge ones can be mapped as such.
void* map_aligned(int fd, int64_t bytes) {
#if defined(__linux__)
  if (bytes >= huge && memory_huge_pages()) {
    void* reserved = mmap(nullptr, bytes + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) return MAP_FAILED;
    const auto start = reinterpret_cast<uintptr_t>(reserved);
    const uintptr_t at = (start + huge - 1) / huge * huge;
    void* p = mmap(reinterpret_cast<void*>(at), bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
    if (p == MAP_FAILED) {
      munmap(reserved, bytes + huge);
      return p;
    }
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t end = (at + bytes + page - 1) / page * page;
    if (at > start) munmap(reserved, at - start);
    if (end < start + bytes + huge) munmap(reinterpret_cast<void*>(end), start + bytes + huge - end);
    return p;
  }
#endif
  return mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
}

}  // namespace

void* file_map(int fd, int64_t bytes, const char* path) {
  std::lock_guard<std::mutex> lock(mutex);
  struct stat found;
  if (bytes <= 0 || fstat(fd, &found) != 0 || found.st_size < bytes) return nullptr;
  Slot* slot = nullptr;
  for (Slot& s : slots)
    if (s.bytes.load(std::memory_order_relaxed) == 0) {
      slot = &s;
      break;
    }
  if (!slot) return nullptr;
  void* p = map_aligned(fd, bytes);
  if (p == MAP_FAILED) return nullptr;
#if defined(MADV_HUGEPAGE)
  if (bytes >= huge && memory_huge_pages()) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  install_handler();
  strncpy(slot->path, path, sizeof slot->path - 1);
  slot->path[sizeof slot->path - 1] = 0;
  slot->first.store(reinterpret_cast<uintptr_t>(p), std::memory_order_relaxed);
  slot->bytes.store(bytes, std::memory_order_release);
  return p;
}

void file_unmap(void* p, int64_t bytes) {
  if (!p) return;
  std::lock_guard<std::mutex> lock(mutex);
  for (Slot& s : slots)
    if (s.bytes.load(std::memory_order_relaxed) != 0 && s.first.load(std::memory_order_relaxed) == reinterpret_cast<uintptr_t>(p))
      s.bytes.store(0, std::memory_order_release);
  munmap(p, bytes);
}

}  // namespace ansatz

#else

namespace ansatz {
void* file_map(int, int64_t, const char*) { return nullptr; }
void file_unmap(void*, int64_t) {}
}  // namespace ansatz

#endif
