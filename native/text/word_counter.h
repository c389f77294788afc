// Counting the distinct pieces of a corpus: the trainer's view of the text.
#pragma once
#include <vector>

#include "hash.h"
#include "pattern.h"

namespace ansatz::text {

// Byte strings with counts: open addressing over words kept in one arena.
class WordCounter {
 public:
  struct Word {
    uint64_t hash, offset, count;
    uint32_t length;
  };

  void add(const uint8_t* p, size_t n, uint64_t count = 1);
  void add_text(const Pattern& pattern, const uint8_t* p, size_t n);
  void merge(const WordCounter& other);

  const std::vector<Word>& words() const { return words_; }
  const uint8_t* bytes(const Word& word) const { return arena_.data() + word.offset; }

 private:
  void grow();
  std::vector<uint32_t> slots_ = std::vector<uint32_t>(1024, 0);   // index in words_ + 1; 0 is empty
  std::vector<Word> words_;
  std::vector<uint8_t> arena_;
};

}  // namespace ansatz::text
