// Matrix products for other kernel files: C = alpha op(A) op(B) + bias + addend, on the whole pool or inside one task.
//
// The blocking follows Goto & van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), and BLIS:
// operands are packed into panels (gemm_pack.h), a register tile walks along K (gemm_tile.h), gemm.cpp cuts the work.
// The functions carry the instruction-set level in their names, so the linker cannot mix levels.
#pragma once
#include "../core/kernel.h"

namespace ansatz {

// One factor. "Lanes" are the rows of op(A) or the columns of op(B). With k_contiguous, element (lane, k) lies at
// lane * ld + k, otherwise at k * ld + lane: that covers both operands and all transposes.
struct GemmOperand {
  const void* data;
  int32_t dtype;
  int64_t ld;
  bool k_contiguous;
};

struct Gemm {
  int64_t m, n, k;
  GemmOperand a, b;
  const void* b_next;     // for ANSATZ_GEMM_ROWS: another B of this shape, which this thread will want next, or null
  const void* b_packed;   // B as ANSATZ_GEMM_PACK left it (b is then not read), or null
  void* c;                // element (i, j) at i * ldc + j
  int32_t c_dtype;
  int64_t ldc;
  const void* addend;     // or null; laid out as C, and may be C
  int32_t addend_dtype;
  const void* bias;       // n values, or null
  int32_t bias_dtype;
  float alpha;
  bool bf16_products;     // operands are rounded to bf16; sums are f32 either way
  bool c_transposed;      // element (i, j) of C and addend at j * ldc + i, and bias has m values
  bool c_once;            // f32 C that nobody reads soon: written past the caches where its rows are whole lines
};

#define ANSATZ_GEMM_RUN ANSATZ_CAT(gemm_run_, , , ANSATZ_LEVEL)
#define ANSATZ_GEMM_PACK ANSATZ_CAT(gemm_pack_, , , ANSATZ_LEVEL)
#define ANSATZ_GEMM_PACKED_BYTES ANSATZ_CAT(gemm_packed_bytes_, , , ANSATZ_LEVEL)
#define ANSATZ_GEMM_TASK ANSATZ_CAT(gemm_task_, , , ANSATZ_LEVEL)
#define ANSATZ_GEMM_ROWS ANSATZ_CAT(gemm_rows_, , , ANSATZ_LEVEL)

// Uses the pool. Scratch slots 0 and 1 of every thread and slot 2 of thread 0 are taken while it runs.
void ANSATZ_GEMM_RUN(const Gemm& g);
// Packs B of g (n, k, b and bf16_products are read) for use in several products, on the pool. The layout depends on n,
// k and bf16_products only; `packed` is 64-byte aligned.
int64_t ANSATZ_GEMM_PACKED_BYTES(int64_t n, int64_t k, bool bf16_products);
void ANSATZ_GEMM_PACK(const Gemm& g, void* packed);
// The same product on the calling thread, for use inside a pool task. Scratch slots 0 and 1 of that thread;
// b_packed is not used here.
void ANSATZ_GEMM_TASK(const Gemm& g, int thread);
// The same where the number of rows comes from data: a row's bits do not depend on m (no other path for few rows). B is
// fetched ahead of its use, for products whose time is that of reading B.
void ANSATZ_GEMM_ROWS(const Gemm& g, int thread);

}  // namespace ansatz
