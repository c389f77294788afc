#include "added_tokens.h"

#include <algorithm>
#include <utility>

namespace ansatz::text {
namespace {

bool word_after(const uint8_t* p, const uint8_t* end) { return p < end && (char_at(class_table(), p, end).classes & WORD); }
bool word_before(const uint8_t* begin, const uint8_t* p) {
  return p > begin && (char_at(class_table(), char_before(begin, p), p).classes & WORD);
}
const uint8_t* skip_space(const uint8_t* p, const uint8_t* end) {
  while (p < end) {
    const Char c = char_at(class_table(), p, end);
    if (!(c.classes & SPACE)) break;
    p += c.length;
  }
  return p;
}
const uint8_t* skip_space_back(const uint8_t* begin, const uint8_t* p) {
  while (p > begin) {
    const uint8_t* q = char_before(begin, p);
    if (!(char_at(class_table(), q, p).classes & SPACE)) break;
    p = q;
  }
  return p;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)), nodes_(1) {
  for (size_t t = 0; t < tokens_.size(); t++) {
    int32_t node = 0;
    for (const char c : tokens_[t].content) {
      const uint8_t byte = static_cast<uint8_t>(c);
      int32_t child = nodes_[node].child;
      while (child >= 0 && nodes_[child].byte != byte) child = nodes_[child].sibling;
      if (child < 0) {
        child = static_cast<int32_t>(nodes_.size());
        nodes_.push_back({-1, -1, nodes_[node].child, byte});
        nodes_[node].child = child;
      }
      node = child;
    }
    nodes_[node].token = static_cast<int32_t>(t);
  }
  std::fill(roots_, roots_ + 256, -1);
  for (int32_t child = nodes_[0].child; child >= 0; child = nodes_[child].sibling) roots_[nodes_[child].byte] = child;
}

int32_t AddedTokenMatcher::child_of(int32_t node, uint8_t byte) const {
  int32_t child = nodes_[node].child;
  while (child >= 0 && nodes_[child].byte != byte) child = nodes_[child].sibling;
  return child;
}

void AddedTokenMatcher::split(const uint8_t* text, size_t begin, size_t end, std::vector<Section>& out) const {
  size_t text_begin = begin;
  for (size_t at = begin; at < end;) {
    int32_t node = roots_[text[at]], found = -1;
    if (node < 0) {
      at++;
      continue;
    }
    size_t found_end = 0;
    for (size_t k = at + 1;; k++) {
      if (nodes_[node].token >= 0) {
        found = nodes_[node].token;
        found_end = k;
      }
      if (k == end || (node = child_of(node, text[k])) < 0) break;
    }
    if (found < 0) {
      at++;
      continue;
    }
    const AddedToken& token = tokens_[found];
    size_t from = at, to = found_end;
    at = found_end;
    if (token.single_word && (word_before(text + begin, text + from) || word_after(text + to, text + end))) continue;
    if (token.lstrip) {
      const size_t stripped = static_cast<size_t>(skip_space_back(text + begin, text + from) - text);
      from = std::max(stripped, text_begin);
    }
    if (token.rstrip) to = static_cast<size_t>(skip_space(text + to, text + end) - text);
    if (text_begin < from) out.push_back({text_begin, from, -1});
    out.push_back({from, to, token.id});
    text_begin = to;
  }
  if (text_begin < end) out.push_back({text_begin, end, -1});
}

}  // namespace ansatz::text
