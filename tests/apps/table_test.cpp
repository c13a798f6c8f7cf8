#include "table.h"

#include <gtest/gtest.h>

namespace flashmha::app {
namespace {

TEST(Table, aligns_figures_to_the_right_and_names_to_the_left) {
  Table table({"row", "plain", "flash"});
  table.add_row({"speed", "1.5 ms", "1 ms"});
  table.add_row({"a longer name", "12.25 ms", "3 ms"});
  EXPECT_EQ(table.to_string(),
            "row               plain  flash\n"
            "------------------------------\n"
            "speed            1.5 ms   1 ms\n"
            "a longer name  12.25 ms   3 ms\n");
}

TEST(Table, counts_characters_and_leaves_no_trailing_blanks) {
  Table table({"what", "why"}, Table::Align::left);
  table.add_row({"±1", "x"});
  table.add_row({"alone"});
  EXPECT_EQ(table.to_string(),
            "what   why\n"
            "----------\n"
            "±1     x\n"
            "alone\n");
}

}  // namespace
}  // namespace flashmha::app
