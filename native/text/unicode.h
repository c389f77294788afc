// UTF-8 decoding and the character classes of pre-tokenisation patterns.
//
// Text is any sequence of bytes: a byte that is not part of well-formed UTF-8 (Unicode Standard, table 3-7) counts as
// one character without class, so every byte string can be split, encoded and restored.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ansatz::text {

enum UnicodeClass : uint8_t { LETTER = 1, NUMBER = 2, SPACE = 4, WORD = 8, NEWLINE = 16 };   // NEWLINE: \r and \n only

// Class of every code point, expanded once from the generated runs: one load a character, 1.1 MB, of which text touches
// only the pages of its scripts.
struct ClassTable {
  static constexpr uint32_t size = 0x110000;
  uint8_t of[size];
  ClassTable();
};
const ClassTable& class_table();

struct Char {
  uint32_t length;   // bytes, 1 to 4
  uint8_t classes;   // UnicodeClass bits, 0 for anything else
};

// Length of the well-formed sequence at p and its code point; 0 if there is none. p < end.
inline uint32_t decode_utf8(const uint8_t* p, const uint8_t* end, uint32_t* code) {
  const uint32_t b0 = p[0];
  const ptrdiff_t left = end - p;
  if (b0 < 0x80) {
    *code = b0;
    return 1;
  }
  if (b0 < 0xc2 || b0 > 0xf4 || left < 2) return 0;
  const uint32_t b1 = p[1];
  if ((b1 & 0xc0) != 0x80) return 0;
  if (b0 < 0xe0) {
    *code = (b0 & 0x1f) << 6 | (b1 & 0x3f);
    return 2;
  }
  if (left < 3 || (p[2] & 0xc0) != 0x80) return 0;
  if (b0 < 0xf0) {
    if ((b0 == 0xe0 && b1 < 0xa0) || (b0 == 0xed && b1 > 0x9f)) return 0;   // overlong; surrogates
    *code = (b0 & 0x0f) << 12 | (b1 & 0x3f) << 6 | (p[2] & 0x3fu);
    return 3;
  }
  if (left < 4 || (p[3] & 0xc0) != 0x80) return 0;
  if ((b0 == 0xf0 && b1 < 0x90) || (b0 == 0xf4 && b1 > 0x8f)) return 0;   // overlong; above U+10FFFF
  *code = (b0 & 0x07) << 18 | (b1 & 0x3f) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
  return 4;
}

inline Char char_at(const ClassTable& table, const uint8_t* p, const uint8_t* end) {
  if (*p < 0x80) return {1, table.of[*p]};
  uint32_t code;
  const uint32_t length = decode_utf8(p, end, &code);
  return length ? Char{length, table.of[code]} : Char{1, 0};
}

// Start of the character that ends just before p. begin < p.
const uint8_t* char_before(const uint8_t* begin, const uint8_t* p);

}  // namespace ansatz::text
