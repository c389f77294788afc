#include "memory.h"

#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ansatz {
namespace {

std::mutex mutex;
// Never destroyed: other threads may still release memory while the process exits.
auto& cache = *new std::unordered_map<int64_t, std::vector<void*>>;
int64_t cached = 0;
constexpr int64_t largest = int64_t(1) << 47;       // more than any address space holds: keeps the rounding exact
constexpr int64_t cache_limit = int64_t(1) << 31;   // beyond this, released blocks go back to the system

// Size classes: eight steps to each power of two, so at most 12.5% is wasted.
int64_t size_class(int64_t bytes) {
  if (bytes <= 256) return 256;
  int64_t step = 32;
  while (step * 16 < bytes) step *= 2;
  const int64_t rounded = (bytes + step - 1) / step * step;
  return (rounded + 63) / 64 * 64;
}

}  // namespace

bool memory_huge_pages() {
  static const bool wanted = [] {
    const char* text = std::getenv("ANSATZ_HUGE_PAGES");
    return !(text && text[0] == '0' && text[1] == 0);
  }();
  return wanted;
}

void* memory_allocate(int64_t bytes) {
  if (bytes < 0 || bytes > largest) return nullptr;
  const int64_t size = size_class(bytes);
  {
    std::lock_guard<std::mutex> lock(mutex);
    auto it = cache.find(size);
    if (it != cache.end() && !it->second.empty()) {
      void* p = it->second.back();
      it->second.pop_back();
      cached -= size;
      return p;
    }
  }
  constexpr int64_t huge = int64_t(2) << 20;
  const int64_t align = size >= huge && memory_huge_pages() ? huge : (size >= 4096 ? 4096 : 64);
  const int64_t rounded = (size + align - 1) / align * align;
  void* p = std::aligned_alloc(align, rounded);
  if (!p) {
    memory_trim();
    p = std::aligned_alloc(align, rounded);
  }
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (p && size >= huge) madvise(p, rounded, memory_huge_pages() ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
  return p;
}

void memory_release(void* p, int64_t bytes) {
  if (!p) return;
  const int64_t size = size_class(bytes);
  std::lock_guard<std::mutex> lock(mutex);
  if (cached + size > cache_limit) {
    std::free(p);
    return;
  }
  cache[size].push_back(p);
  cached += size;
}

int64_t memory_cached_bytes() {
  std::lock_guard<std::mutex> lock(mutex);
  return cached;
}

void memory_trim() {
  std::lock_guard<std::mutex> lock(mutex);
  for (auto& entry : cache)
    for (void* p : entry.second) std::free(p);
  cache.clear();
  cached = 0;
}

}  // namespace ansatz
