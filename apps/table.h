// Columns of text on a terminal.
#pragma once

#include <string>
#include <vector>

namespace flashmha::app {

// The first column is aligned to the left, the others to the right (or all to the left, for prose).
class Table {
 public:
  enum class Align { right, left };

  explicit Table(std::vector<std::string> header, Align align = Align::right);

  // One cell a column; missing cells at the end stay empty.
  void add_row(std::vector<std::string> cells);

  // Header, a rule, rows; each line ends without trailing blanks.
  std::string to_string() const;
  void print() const;  // to stdout

 private:
  std::vector<std::vector<std::string>> rows_;  // the header first
  Align align_;
};

}  // namespace flashmha::app
