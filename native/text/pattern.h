// Pre-tokenisation: cutting text into the pieces inside which merges happen.
//
// Hand-written scanners for the two families of patterns that nearly all byte-level tokenizers use; each follows its
// regular expression alternative by alternative, including where the backtracking would end. Other expressions are split
// in TypeScript (src/data/tokenizer/splitter.ts).
#pragma once
#include "unicode.h"

namespace ansatz::text {

struct Pattern {
  enum Kind : int32_t {
    WHOLE = 0,    // no splitting
    GPT2 = 1,     // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
    CL100K = 2,   // (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}
                  //  | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
  };
  Kind kind = WHOLE;
  uint32_t max_digits = 3;       // CL100K only
  bool ignore_case = true;       // CL100K only: contractions in either case
};

// End of the piece that starts at p, begin <= p < end. Always moves on.
const uint8_t* next_piece(const Pattern& pattern, const ClassTable& table, const uint8_t* p, const uint8_t* end);

}  // namespace ansatz::text
