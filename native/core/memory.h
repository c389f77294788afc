// Host memory for tensors: 64-byte aligned (4 KiB above one page), huge pages asked for above 2 MiB, freed blocks kept
// by size class so that an eager step does not go to the operating system for each tensor.
// ANSATZ_HUGE_PAGES=0 asks for no huge pages, here and in mapped files.
#pragma once
#include <cstdint>

namespace ansatz {

void* memory_allocate(int64_t bytes);             // nullptr when the system refuses
void memory_release(void* p, int64_t bytes);      // bytes as asked for
int64_t memory_cached_bytes();
bool memory_huge_pages();                         // whether huge pages are asked for
void memory_trim();                               // gives all cached blocks back

}  // namespace ansatz
