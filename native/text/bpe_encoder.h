// A byte-level BPE tokenizer's encoder: added tokens, pieces, merges. Immutable once built; any number of threads may
// encode at the same time, each with a cache of its own.
#pragma once
#include <memory>
#include <mutex>
#include <unordered_map>

#include "added_tokens.h"
#include "bpe_merges.h"
#include "pattern.h"
#include "word_cache.h"

namespace ansatz::text {

struct Span {
  const uint8_t* data;
  size_t size;
};

struct EncoderSpec {
  uint32_t byte_ids[256];
  std::vector<uint32_t> merges;             // (left, right, product) in order of rank
  std::vector<std::pair<std::string, int32_t>> whole_words;   // ignore_merges: pieces that are tokens as they stand
  std::vector<AddedToken> raw_added, normalized_added;        // matched in this order, the second after normalisation
  Pattern pattern;
  enum Prefix : int32_t { NO_PREFIX = 0, SECTION = 1, PIECE = 2 } prefix = NO_PREFIX;   // where a missing space is added
};

// What is matched before the text is split.
enum class Match : int32_t { ALL = 0, NOTHING = 1 };

class BpeEncoder {
 public:
  explicit BpeEncoder(EncoderSpec spec);

  std::vector<int32_t> encode(Span text, Match match) const;
  std::vector<std::vector<int32_t>> encode_batch(const std::vector<Span>& texts, Match match, int threads) const;

  // Pieces cut by the caller: piece k ends at ends[k].
  std::vector<int32_t> encode_pieces(Span text, const uint32_t* ends, size_t count) const;

  // Sections of the text by one of the two lists of added tokens.
  std::vector<Section> split_added(Span text, bool normalized) const;

 private:
  struct Worker {
    WordCache cache;
    MergeScratch scratch;
    std::vector<uint8_t> prefixed;
    std::vector<Section> sections, inner;
  };
  std::unique_ptr<Worker> take_worker() const;
  void return_worker(std::unique_ptr<Worker> worker) const;

  void encode_text(Span text, Match match, Worker& w, std::vector<int32_t>& out) const;
  void encode_section(const uint8_t* p, const uint8_t* end, Worker& w, std::vector<int32_t>& out) const;
  void encode_piece(const uint8_t* p, size_t n, Worker& w, std::vector<int32_t>& out) const;

  BpeMerges merges_;
  std::unordered_map<std::string, int32_t> whole_words_;
  AddedTokenMatcher raw_added_, normalized_added_;
  Pattern pattern_;
  EncoderSpec::Prefix prefix_;
  mutable std::mutex workers_lock_;
  mutable std::vector<std::unique_ptr<Worker>> workers_;   // idle ones, their caches warm
};

}  // namespace ansatz::text
