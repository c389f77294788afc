#include "pattern.h"

namespace ansatz::text {
namespace {

// Past the run of characters that have one of the classes in `bits`.
inline const uint8_t* run_of(const ClassTable& table, uint8_t bits, const uint8_t* p, const uint8_t* end) {
  while (p < end) {
    const Char c = char_at(table, p, end);
    if (!(c.classes & bits)) break;
    p += c.length;
  }
  return p;
}

// Past the run of [^\s\p{L}\p{N}].
inline const uint8_t* run_of_others(const ClassTable& table, const uint8_t* p, const uint8_t* end) {
  while (p < end) {
    const Char c = char_at(table, p, end);
    if (c.classes & (LETTER | NUMBER | SPACE)) break;
    p += c.length;
  }
  return p;
}

// 's 't 're 've 'm 'll 'd at the apostrophe p; null if it is none of them. Ignoring case lets U+017F (long s, which
// folds to s) stand for s, as in Oniguruma and Python.
inline const uint8_t* contraction(bool ignore_case, const uint8_t* p, const uint8_t* end) {
  if (end - p < 2) return nullptr;
  const uint8_t fold = ignore_case ? 0x20 : 0;
  const uint8_t a = p[1] < 0x80 ? p[1] | fold : 0;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return p + 2;
  if (end - p < 3) return nullptr;
  if (ignore_case && p[1] == 0xc5 && p[2] == 0xbf) return p + 3;
  const uint8_t b = p[2] < 0x80 ? p[2] | fold : 0;
  if ((a == 'l' && b == 'l') || (b == 'e' && (a == 'v' || a == 'r'))) return p + 3;
  return nullptr;
}

// \s+(?!\S)|\s+, and before it \s*[\r\n]+ where newlines end a piece.
inline const uint8_t* whitespace(bool cut_at_newline, const ClassTable& table, const uint8_t* p, const uint8_t* end) {
  const uint8_t *q = p, *last = p, *newline = nullptr;
  while (q < end) {
    const Char c = char_at(table, q, end);
    if (!(c.classes & SPACE)) break;
    last = q;
    q += c.length;
    if (c.classes & NEWLINE) newline = q;
  }
  if (cut_at_newline && newline) return newline;
  if (q == end) return end;
  return last > p ? last : q;   // leave one character to go with the word that follows
}

const uint8_t* next_gpt2(const ClassTable& table, const uint8_t* p, const uint8_t* end) {
  if (*p == '\'') {
    if (const uint8_t* q = contraction(false, p, end)) return q;
  }
  const uint8_t* word = p + (*p == ' ');
  if (word < end) {
    const Char c = char_at(table, word, end);
    const uint8_t* next = word + c.length;
    if (c.classes & LETTER) return run_of(table, LETTER, next, end);
    if (c.classes & NUMBER) return run_of(table, NUMBER, next, end);
    if (!(c.classes & SPACE)) return run_of_others(table, next, end);
  }
  return whitespace(false, table, p, end);
}

const uint8_t* next_cl100k(const Pattern& pattern, const ClassTable& table, const uint8_t* p, const uint8_t* end) {
  if (*p == '\'') {
    if (const uint8_t* q = contraction(pattern.ignore_case, p, end)) return q;
  }
  const Char first = char_at(table, p, end);
  const uint8_t* next = p + first.length;
  if (first.classes & LETTER) return run_of(table, LETTER, next, end);
  if (first.classes & NUMBER) {
    for (uint32_t n = 1; n < pattern.max_digits && next < end; n++) {
      const Char c = char_at(table, next, end);
      if (!(c.classes & NUMBER)) break;
      next += c.length;
    }
    return next;
  }
  if (next < end && !(first.classes & NEWLINE)) {
    const Char second = char_at(table, next, end);
    if (second.classes & LETTER) return run_of(table, LETTER, next + second.length, end);
  }
  const uint8_t* others = p + (*p == ' ');
  const uint8_t* others_end = run_of_others(table, others, end);
  if (others_end > others) return run_of(table, NEWLINE, others_end, end);
  return whitespace(true, table, p, end);
}

}  // namespace

const uint8_t* next_piece(const Pattern& pattern, const ClassTable& table, const uint8_t* p, const uint8_t* end) {
  switch (pattern.kind) {
    case Pattern::GPT2: return next_gpt2(table, p, end);
    case Pattern::CL100K: return next_cl100k(pattern, table, p, end);
    default: return end;
  }
}

}  // namespace ansatz::text
