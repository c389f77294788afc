// Hashing of byte strings (words of a few bytes, mostly) and of token pairs.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ansatz::text {

inline uint64_t load64(const uint8_t* p) {
  uint64_t x;
  std::memcpy(&x, p, 8);
  return x;
}
inline uint64_t load32(const uint8_t* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

// Both halves of the 128-bit product: every input bit reaches every output bit.
inline uint64_t mix(uint64_t a, uint64_t b) {
  const unsigned __int128 m = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(m) ^ static_cast<uint64_t>(m >> 64);
}

inline uint64_t hash_bytes(const uint8_t* p, size_t n) {
  constexpr uint64_t k0 = 0x9e3779b97f4a7c15u, k1 = 0xd6e8feb86659fd93u;
  uint64_t h = n * k0;
  const uint8_t* end = p + n;
  for (; end - p > 16; p += 16) h = mix(load64(p) ^ k0, load64(p + 8) ^ h ^ k1);
  const size_t rest = static_cast<size_t>(end - p);
  uint64_t a = 0, b = 0;   // overlapping loads cover the rest without reading outside the string
  if (rest >= 8) {
    a = load64(p);
    b = load64(end - 8);
  } else if (rest >= 4) {
    a = load32(p);
    b = load32(end - 4);
  } else if (rest) {
    a = static_cast<uint64_t>(p[0]) << 16 | static_cast<uint64_t>(p[rest / 2]) << 8 | p[rest - 1];
  }
  return mix(a ^ k1 ^ h, b ^ k0);
}

inline uint64_t pair_key(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) << 32 | b; }
inline uint64_t hash_key(uint64_t key) { return mix(key ^ 0x9e3779b97f4a7c15u, 0xd6e8feb86659fd93u); }

}  // namespace ansatz::text
