// Added tokens (control tokens and the like): fixed strings taken out of the text before it is split into pieces.
#pragma once
#include <string>
#include <vector>

#include "unicode.h"

namespace ansatz::text {

struct AddedToken {
  std::string content;   // never empty
  int32_t id;
  bool single_word;      // only where no word character touches it
  bool lstrip, rstrip;   // swallows white space on that side
};

struct Section {
  size_t begin, end;
  int32_t id;   // of the added token, -1 for text
};

// Finds added tokens as Hugging Face tokenizers does: leftmost, then longest, not overlapping.
class AddedTokenMatcher {
 public:
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);
  bool empty() const { return tokens_.empty(); }

  // Appends the sections of text[begin..end).
  void split(const uint8_t* text, size_t begin, size_t end, std::vector<Section>& out) const;

 private:
  struct Node {
    int32_t token = -1;        // index in tokens_ of the token that ends here
    int32_t child = -1, sibling = -1;
    uint8_t byte = 0;
  };
  int32_t child_of(int32_t node, uint8_t byte) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;    // a trie; node 0 is the root
  int32_t roots_[256];         // children of the root: nearly every position of a text ends here
};

}  // namespace ansatz::text
