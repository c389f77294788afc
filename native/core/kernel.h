// The contract between the dispatcher and every kernel family.
//
// A kernel is one C function that reads a Call: tensor arguments (address + dtype, null when absent), integers and
// doubles. What each kernel expects is written in docs/kernels.md, once for all devices. Shapes, dtypes and strides
// have been checked in TypeScript before a Call is made, so kernels do not check them again; *values* that come from
// data (token ids, indices) are checked here and reported with raise().
#pragma once
#include <cstdint>

namespace ansatz {

enum DType : int32_t { F32 = 0, BF16 = 1, I32 = 2, U8 = 3 };

// Storage type of bfloat16: the upper half of a float32.
struct bf16 { uint16_t bits; };

struct Call {
  void* const* p;         // tensor addresses; nullptr where an optional tensor is absent
  const int32_t* t;       // their dtypes (DType)
  const int64_t* i;       // integers
  const double* f;        // real parameters
  int32_t np, ni, nf;

  template <class T> T* ptr(int k) const { return static_cast<T*>(p[k]); }
};

using KernelFn = void (*)(const Call&);
struct KernelEntry { const char* name; KernelFn fn; };
struct KernelTable { const KernelEntry* entries; int32_t count; };

// What a kernel may report about data; the dispatcher turns it into a JavaScript error. The first report wins.
enum ErrorCode : int32_t { OK = 0, INDEX_OUT_OF_RANGE = 1, UNSUPPORTED = 2 };
void raise(ErrorCode code, int64_t value, int64_t limit);

}  // namespace ansatz

// Kernel files are compiled once for each instruction-set level with -DANSATZ_LEVEL=portable|avx2|avx512. Everything
// in them lives in an unnamed namespace, and they instantiate no std:: templates: a symbol shared between levels would
// be merged by the linker, and an old CPU could then run AVX-512 code. test/cpu/isa-isolation.test.ts checks it.
#define ANSATZ_CAT_(a, b, c, d) a##b##c##d
#define ANSATZ_CAT(a, b, c, d) ANSATZ_CAT_(a, b, c, d)

// At the end of a family's file: ANSATZ_KERNELS(gemm, {"matmul", matmul}, ...). The table is constant data (no static
// constructor runs code of the wrong level); scripts/build-native.mjs writes the list of all tables.
#define ANSATZ_KERNELS(family, ...)                                                                              \
  namespace ansatz {                                                                                             \
  namespace {                                                                                                    \
  constexpr KernelEntry kernel_entries[] = {__VA_ARGS__};                                                        \
  }                                                                                                              \
  extern const KernelTable ANSATZ_CAT(table_, family, _, ANSATZ_LEVEL);                                          \
  const KernelTable ANSATZ_CAT(table_, family, _, ANSATZ_LEVEL) = {                                              \
      kernel_entries, static_cast<int32_t>(sizeof(kernel_entries) / sizeof(kernel_entries[0]))};                 \
  }
