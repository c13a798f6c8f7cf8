#include "table.h"

#include <fmt/format.h>

#include <algorithm>

namespace flashmha::app {
namespace {

constexpr std::string_view kGap = "  ";

// Characters, not bytes: continuation bytes of UTF-8 take no room.
std::size_t width(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

Table::Table(std::vector<std::string> header, Align align)
    : rows_{std::move(header)}, align_(align) {}

void Table::add_row(std::vector<std::string> cells) {
  cells.resize(rows_.front().size());
  rows_.push_back(std::move(cells));
}

std::string Table::to_string() const {
  std::vector<std::size_t> widths(rows_.front().size(), 0);
  for (const auto& row : rows_) {
    for (std::size_t column = 0; column < row.size(); ++column) {
      widths[column] = std::max(widths[column], width(row[column]));
    }
  }
  std::string text;
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    std::string line;
    for (std::size_t column = 0; column < widths.size(); ++column) {
      const std::string& cell = rows_[r][column];
      const std::string padding(widths[column] - width(cell), ' ');
      const bool left = column == 0 || align_ == Align::left;
      line += (column > 0 ? kGap : "");
      line += left ? cell + padding : padding + cell;
    }
    const std::size_t full_width = width(line);
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
    if (r == 0) text += std::string(full_width, '-') + '\n';
  }
  return text;
}

void Table::print() const {
  fmt::print("{}", to_string());
}

}  // namespace flashmha::app
