// Files as memory: read-only, private mappings, so that opening weights costs nothing but their header, processes share
// the pages, and pages that nobody uses can go. Linux and macOS; elsewhere file_map() refuses and the caller reads.
#pragma once
#include <cstdint>

namespace ansatz {

// The first `bytes` of an open file, at an address that is a multiple of 64 (of 2 MiB for large files where the
// system has huge pages). nullptr when it cannot be mapped, or is shorter.
// `path` is for the message when the file is cut short while it is in use, which no mapping survives.
void* file_map(int fd, int64_t bytes, const char* path);
void file_unmap(void* p, int64_t bytes);

}  // namespace ansatz
