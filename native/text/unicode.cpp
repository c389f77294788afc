#include "unicode.h"

#include <cstring>

#include "unicode_ranges.h"

namespace ansatz::text {

ClassTable::ClassTable() {
  constexpr size_t count = sizeof(unicode_runs) / sizeof(unicode_runs[0]);
  for (size_t k = 0; k < count; k++) {
    const uint32_t first = unicode_runs[k] >> 4, next = k + 1 < count ? unicode_runs[k + 1] >> 4 : size;
    std::memset(of + first, static_cast<int>(unicode_runs[k] & 15), next - first);
  }
  of[0x0a] |= NEWLINE;
  of[0x0d] |= NEWLINE;
}

const ClassTable& class_table() {
  static const ClassTable* const table = new ClassTable;   // never freed: threads may outlive static destruction
  return *table;
}

const uint8_t* char_before(const uint8_t* begin, const uint8_t* p) {
  for (ptrdiff_t back = 2; back <= 4 && back <= p - begin; back++) {
    uint32_t code;
    if (decode_utf8(p - back, p, &code) == static_cast<uint32_t>(back)) return p - back;
  }
  return p - 1;
}

}  // namespace ansatz::text
