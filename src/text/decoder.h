// What is done to tokens on their way back to text.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "text/pattern.h"

namespace flashmha::text {

// The steps, in order; none where tokens are joined as they are.
class Decoder {
 public:
  // Tokens of bytes, <0xE2>, become text once all that follow each other are there: that of their
  // bytes, or U+FFFD for each of them if one is not part of a character.
  struct ByteFallback {};
  // Takes up to `count` times a character from the start of every token, or of the text that they
  // form ("Fuse" comes before).
  struct Strip {
    std::string character;
    std::size_t count = 0;
    bool of_text = false;
  };
  // Marks become spaces; those in the first token vanish.
  struct Metaspace {
    std::string mark;
    bool drops_first = true;
  };
  using Step = std::variant<Replace, ByteFallback, Strip, Metaspace>;

  void add(Step step) { steps_.push_back(std::move(step)); }

  // What the steps remember between two tokens of one text.
  struct State {
    std::string bytes;          // of ByteFallback
    std::size_t num_taken = 0;  // by Strip
    bool is_inside = false;     // something came before: of Strip and Metaspace
  };
  using States = std::vector<State>;  // of each step
  States start() const { return States(steps_.size()); }

  // Appends what a token completes; what is held back as if no byte followed.
  void push(std::string token, States& states, std::string& out) const;
  void flush(States& states, std::string& out) const;

 private:
  // The same from one step on.
  void push(std::size_t step, std::string token, States& states, std::string& out) const;

  std::vector<Step> steps_;
};

}  // namespace flashmha::text
