// Packing and the register tile against double precision, on every tier that this machine runs.

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <new>
#include <random>

#include "flashmha/dtype.h"
#include "tests/cpu/tier_functions.h"

namespace flashmha::tests {
namespace {

std::vector<float> random_floats(std::mt19937& random, int64_t count) {
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& v : x)
    v = uniform(random);
  return x;
}

// Numbers that all three storages hold exactly.
std::vector<float> small_integers(std::mt19937& random, int64_t count) {
  std::uniform_int_distribution<int> uniform(-99, 99);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& v : x)
    v = static_cast<float>(uniform(random));
  return x;
}

// Floats of the panels of a num_rows x num_columns block.
int64_t panels_size(const TierFunctions& tier, int64_t num_rows, int64_t num_columns) {
  const int64_t num_panels = (num_columns + tier.tile_columns - 1) / tier.tile_columns;
  return num_rows * num_panels * tier.tile_columns;
}

class Packing : public testing::TestWithParam<const TierFunctions*> {};

TEST_P(Packing, panels_of_every_size_and_storage) {
  const TierFunctions& tier = *GetParam();
  std::mt19937 random(5489);
  const int64_t width = tier.tile_columns;
  for (const bool transposed : {false, true}) {
    for (int64_t rows = 0; rows <= 2 * tier.lanes + 1; ++rows) {
      for (int64_t columns = 1; columns <= 2 * width + 1; columns += columns < width + 2 ? 1 : 3) {
        const int64_t lines = transposed ? columns : rows, length = transposed ? rows : columns;
        const int64_t stride = length + 3;
        std::vector<float> source = small_integers(random, lines * stride);
        for (int64_t i = 0; i < lines; ++i) {  // what lies between the rows must not be read in
          for (int64_t j = length; j < stride; ++j) {
            source[static_cast<size_t>(i * stride + j)] = NAN;
          }
        }
        const int64_t size = panels_size(tier, rows, columns);
        for (int storage = 0; storage < 3; ++storage) {
          std::vector<uint32_t> stored(source.size() + 1);
          tier.narrow[storage](source.data(), stored.data(), static_cast<int64_t>(source.size()));
          std::vector<float> panels(static_cast<size_t>(size + 1), NAN);
          tier.pack[storage](transposed, stored.data(), stride, rows, columns, panels.data());
          for (int64_t p = 0; p < size; ++p) {
            const int64_t panel = rows == 0 ? 0 : p / (rows * width);
            const int64_t k = p % (rows * width) / width, j = panel * width + p % width;
            const int64_t at = transposed ? j * stride + k : k * stride + j;
            const float want = j < columns ? source[static_cast<size_t>(at)] : 0.0f;
            ASSERT_EQ(panels[static_cast<size_t>(p)], want)
                << "transposed " << transposed << " storage " << storage << " rows " << rows
                << " columns " << columns << " at " << k << "," << j;
          }
          ASSERT_TRUE(std::isnan(panels.back()));
        }
      }
    }
  }
}

TEST_P(Packing, widened_rows_are_scaled) {
  const TierFunctions& tier = *GetParam();
  std::mt19937 random(5489);
  for (int64_t columns = 0; columns <= 2 * tier.lanes + 1; ++columns) {
    const std::vector<float> source = small_integers(random, 3 * (columns + 2));
    for (int storage = 0; storage < 3; ++storage) {
      std::vector<uint32_t> stored(source.size() + 1);
      tier.narrow[storage](source.data(), stored.data(), static_cast<int64_t>(source.size()));
      std::vector<float> out(static_cast<size_t>(3 * columns + 1), NAN);
      tier.widen_rows[storage](stored.data(), columns + 2, 3, columns, 0.25f, out.data());
      for (int64_t i = 0; i < 3 * columns; ++i) {
        const int64_t at = i / columns * (columns + 2) + i % columns;
        ASSERT_EQ(out[static_cast<size_t>(i)], 0.25f * source[static_cast<size_t>(at)]);
      }
      ASSERT_TRUE(std::isnan(out.back()));
    }
  }
}

class Microkernel : public testing::TestWithParam<const TierFunctions*> {};

// Every height and width of a tile, and what is left over beside whole tiles.
TEST_P(Microkernel, products_of_every_edge_size) {
  const TierFunctions& tier = *GetParam();
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int64_t m = 1; m <= 2 * tier.tile_rows + 1; ++m) {
    for (int64_t n = 1; n <= tier.tile_columns + tier.lanes + 1; ++n) {
      for (const int64_t k : {0, 1, 2, 37}) {
        const std::vector<float> a = random_floats(random, m * k);
        const std::vector<float> b = random_floats(random, n * k);
        const std::vector<float> start = random_floats(random, m * n);
        std::vector<float> columns_of_a(a.size());
        for (int64_t i = 0; i < m * k; ++i) {
          columns_of_a[static_cast<size_t>(i % k * m + i / k)] = a[static_cast<size_t>(i)];
        }
        std::vector<float> panels(static_cast<size_t>(panels_size(tier, k, n)), NAN);
        tier.pack[0](true, b.data(), k, k, n, panels.data());
        for (const bool by_columns : {false, true}) {
          for (const bool accumulate : {false, true}) {
            std::vector<float> c(static_cast<size_t>(m * n + 1), NAN);
            if (accumulate) std::copy(start.begin(), start.end(), c.begin());
            tier.multiply(m, n, k, by_columns ? columns_of_a.data() : a.data(), by_columns,
                          panels.data(), c.data(), accumulate);
            for (int64_t e = 0; e < m * n; ++e) {
              double want = accumulate ? start[static_cast<size_t>(e)] : 0.0;
              for (int64_t d = 0; d < k; ++d) {
                want += double{a[static_cast<size_t>(e / n * k + d)]} *
                        double{b[static_cast<size_t>(e % n * k + d)]};
              }
              ASSERT_NEAR(c[static_cast<size_t>(e)], want, 1e-5)
                  << m << " x " << n << " x " << k << " by_columns " << by_columns << " accumulate "
                  << accumulate << " element " << e;
            }
            ASSERT_TRUE(std::isnan(c.back())) << "wrote beyond the last element";
          }
        }
      }
    }
  }
}

// An element's bits depend neither on the tile that it falls into nor on how the depth is cut.
TEST_P(Microkernel, bits_do_not_depend_on_the_cut) {
  const TierFunctions& tier = *GetParam();
  std::mt19937 random(5489);
  const int64_t m = 13, n = tier.tile_columns, k = 100, cut = 41;
  const std::vector<float> a = random_floats(random, m * k);
  const std::vector<float> b = random_floats(random, n * k);
  std::vector<float> panels(static_cast<size_t>(panels_size(tier, k, n)));
  tier.pack[0](true, b.data(), k, k, n, panels.data());
  std::vector<float> together(static_cast<size_t>(m * n));
  tier.multiply(m, n, k, a.data(), false, panels.data(), together.data(), false);
  std::vector<float> head, tail;
  for (int64_t i = 0; i < m * k; ++i) {
    (i % k < cut ? head : tail).push_back(a[static_cast<size_t>(i)]);
  }
  std::vector<float> apart(together.size());
  for (int64_t i = 0; i < m; ++i) {
    float* row = apart.data() + i * n;
    tier.multiply(1, n, cut, head.data() + i * cut, false, panels.data(), row, false);
    tier.multiply(1, n, k - cut, tail.data() + i * (k - cut), false, panels.data() + cut * n, row,
                  true);
  }
  EXPECT_EQ(together, apart);
}

const auto kName = [](const auto& tier) { return std::string(tier.param->name); };
INSTANTIATE_TEST_SUITE_P(, Packing, testing::ValuesIn(runnable_tiers()), kName);
INSTANTIATE_TEST_SUITE_P(, Microkernel, testing::ValuesIn(runnable_tiers()), kName);

}  // namespace
}  // namespace flashmha::tests
