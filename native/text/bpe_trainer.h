// Byte-pair encoding trainer: the most frequent adjacent pair becomes a token, until the vocabulary is full.
//
// Pair counts are kept exact under each merge, and only words that contain the pair are visited. The result depends on
// the counts alone (more frequent first, then the smaller pair of ids, as Hugging Face's BpeTrainer breaks ties), never
// on the order of documents or the number of threads.
#pragma once
#include <atomic>
#include <string>
#include <unordered_map>
#include <vector>

#include "bpe_encoder.h"
#include "word_counter.h"

namespace ansatz::text {

struct TrainerSpec {
  uint32_t vocab_size = 0;
  uint64_t min_frequency = 1;
  uint32_t byte_ids[256];               // tokens of the single bytes
  // Ids 0, 1, ... are special tokens. For each, the bytes whose token would be written the same way in the vocabulary
  // (empty if there are none): no merge may produce them.
  std::vector<std::string> reserved;
  Pattern pattern;
};

class BpeTrainer {
 public:
  explicit BpeTrainer(TrainerSpec spec);

  void add_texts(const std::vector<Span>& texts, int threads);
  void add_pieces(Span text, const uint32_t* ends, size_t count);

  // Learns merges for about `milliseconds` (negative: to the end); true when done. Texts can no longer be added then.
  bool run(double milliseconds);

  const std::vector<uint32_t>& merges() const { return merges_; }   // (left, right, product) in order
  uint64_t words() const { return word_total_; }

  // May be read from another thread while run() or add_texts() works.
  std::atomic<uint64_t> bytes_counted{0};
  std::atomic<uint32_t> tokens_made{0};

 private:
  static constexpr uint32_t no_product = 0xffffffffu, forbidden = 0xfffffffeu;
  struct Pair {
    uint32_t left, right;
    uint64_t count;
    uint32_t product;                   // once merged
    std::vector<uint32_t> words;        // where it may occur, without repetition in a row
  };
  struct Candidate {
    uint64_t count, key;
    uint32_t pair;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : key > other.key;
    }
  };
  struct Neighbour {                    // of the pair being merged: how often this token stands beside it, and where
    uint64_t count = 0;
    std::vector<uint32_t> words;
  };

  void build();
  uint32_t pair_index(uint32_t left, uint32_t right);
  void push(uint32_t pair);
  bool choose_product(Pair& pair);
  void merge(uint32_t pair);
  void merge_in_word(uint32_t word, uint32_t left, uint32_t right, uint32_t product);
  void apply_neighbours(uint32_t left, uint32_t right, uint32_t product);

  TrainerSpec spec_;
  std::vector<WordCounter> counters_ = std::vector<WordCounter>(1);
  bool built_ = false;

  std::vector<uint32_t> symbols_;       // of all words, each word shrinking in place
  std::vector<uint64_t> word_begin_, word_count_;
  std::vector<uint32_t> word_length_;
  uint64_t word_total_ = 0;

  std::vector<Pair> pairs_;
  std::vector<uint32_t> pair_slots_;    // open addressing over pairs_: index + 1
  std::vector<Candidate> heap_;         // lazily updated: a count may be too high, never too low
  std::vector<Neighbour> before_, after_;
  std::vector<uint32_t> touched_before_, touched_after_;

  std::vector<std::string> tokens_;     // bytes of each id
  std::unordered_map<std::string, uint32_t> token_ids_;
  std::vector<uint32_t> merges_;
};

}  // namespace ansatz::text
