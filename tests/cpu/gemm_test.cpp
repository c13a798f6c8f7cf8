// The matrix product against double precision: sizes, strides, storages, alpha, beta, bias,
// batches, and that bits depend neither on the number of threads nor on the number of rows.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <random>

#include "cpu/gemm.h"
#include "flashmha/device.h"
#include "tests/cpu/tier_functions.h"

namespace flashmha::tests {
namespace {

using cpu::GemmMatrix;
using cpu::GemmProblem;

constexpr std::array kDTypes = {DType::float32, DType::bfloat16, DType::float16};

float read(DType dtype, const void* data, int64_t i) {
  if (dtype == DType::bfloat16) return static_cast<float>(static_cast<const BFloat16*>(data)[i]);
  if (dtype == DType::float16) return static_cast<float>(static_cast<const Float16*>(data)[i]);
  return static_cast<const float*>(data)[i];
}

void write(DType dtype, void* data, int64_t i, float x) {
  if (dtype == DType::bfloat16) {
    static_cast<BFloat16*>(data)[i] = BFloat16(x);
  } else if (dtype == DType::float16) {
    static_cast<Float16*>(data)[i] = Float16(x);
  } else {
    static_cast<float*>(data)[i] = x;
  }
}

double roundoff(DType dtype) {
  return dtype == DType::bfloat16 ? 0x1p-8 : dtype == DType::float16 ? 0x1p-11 : 0x1p-24;
}

enum class Order { rows, columns, strided };  // which stride is 1

// A batch of matrices in memory of its own; gaps and ends hold NaN.
struct Matrix {
  GemmMatrix view;
  std::vector<uint32_t> memory;

  Matrix(DType dtype, int64_t rows, int64_t columns, Order order,
         std::array<int64_t, 2> batch = {1, 1}) {
    view.dtype = dtype;
    view.row_stride = order == Order::rows ? columns + 3 : order == Order::columns ? 1 : 2;
    view.column_stride = order == Order::rows      ? 1
                         : order == Order::columns ? rows + 5
                                                   : 2 * rows + 3;
    const int64_t one = 1 + (rows + 4) * (columns + 4) * 2;
    view.batch_strides[3] = one;
    view.batch_strides[2] = one * batch[1];
    memory.resize(static_cast<size_t>(one * batch[0] * batch[1]) + 1);
    view.data = memory.data();
    for (int64_t i = 0; i < one * batch[0] * batch[1]; ++i)
      write(dtype, view.data, i, NAN);
  }
  Matrix(const Matrix&) = delete;

  int64_t at(int64_t outer, int64_t inner, int64_t i, int64_t j) const {
    return outer * view.batch_strides[2] + inner * view.batch_strides[3] + i * view.row_stride +
           j * view.column_stride;
  }
  float get(int64_t outer, int64_t inner, int64_t i, int64_t j) const {
    return read(view.dtype, view.data, at(outer, inner, i, j));
  }
};

void randomise(std::mt19937& random, const Matrix& matrix, int64_t rows, int64_t columns,
               std::array<int64_t, 2> batch = {1, 1}) {
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (int64_t outer = 0; outer < batch[0]; ++outer) {
    for (int64_t inner = 0; inner < batch[1]; ++inner) {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          write(matrix.view.dtype, matrix.view.data, matrix.at(outer, inner, i, j),
                uniform(random));
        }
      }
    }
  }
}

struct Case {
  int64_t m, n, k;
  DType a = DType::float32, b = DType::float32, c = DType::float32;
  Order a_order = Order::rows, b_order = Order::rows, c_order = Order::rows;
  float alpha = 1.0f, beta = 0.0f;
  bool bias = false;
  std::array<int64_t, 2> batch = {1, 1};
  bool repeat_b = false;  // one b for all of the inner batch
};

std::ostream& operator<<(std::ostream& out, const Case& t) {
  return out << t.m << "x" << t.n << "x" << t.k << " dtypes " << dtype_name(t.a) << ","
             << dtype_name(t.b) << "," << dtype_name(t.c) << " orders "
             << static_cast<int>(t.a_order) << static_cast<int>(t.b_order)
             << static_cast<int>(t.c_order) << " alpha " << t.alpha << " beta " << t.beta
             << " bias " << t.bias << " batch " << t.batch[0] << "," << t.batch[1];
}

class Gemm : public testing::TestWithParam<const TierFunctions*> {
 protected:
  const cpu::KernelTable& table() const { return cpu::select_kernels(GetParam()->name); }

  void check(const Case& t) {
    Matrix a(t.a, t.m, t.k, t.a_order, t.batch), b(t.b, t.k, t.n, t.b_order, t.batch);
    Matrix c(t.c, t.m, t.n, t.c_order, t.batch), bias(t.b, 1, t.n, Order::strided);
    randomise(random_, a, t.m, t.k, t.batch);
    randomise(random_, b, t.k, t.n, t.batch);
    randomise(random_, bias, 1, t.n);
    if (t.beta != 0.0f) randomise(random_, c, t.m, t.n, t.batch);
    if (t.repeat_b) b.view.batch_strides[3] = 0;
    const std::vector<uint32_t> before = c.memory;

    GemmProblem p{.m = t.m, .n = t.n, .k = t.k};
    p.batch[2] = t.batch[0];
    p.batch[3] = t.batch[1];
    p.a = a.view, p.b = b.view, p.c = c.view;
    p.alpha = t.alpha, p.beta = t.beta;
    if (t.bias) {
      p.bias = bias.view.data;
      p.bias_dtype = t.b;
      p.bias_stride = bias.view.column_stride;
    }
    cpu::gemm(p, table());

    // Becomes what was there before, if all else is untouched.
    std::vector<uint32_t> rest = c.memory;
    for (int64_t outer = 0; outer < t.batch[0]; ++outer) {
      for (int64_t inner = 0; inner < t.batch[1]; ++inner) {
        for (int64_t i = 0; i < t.m; ++i) {
          for (int64_t j = 0; j < t.n; ++j) {
            double want = 0, size = 0;
            for (int64_t d = 0; d < t.k; ++d) {
              const double term =
                  double{a.get(outer, inner, i, d)} * double{b.get(outer, inner, d, j)};
              want += t.alpha * term;
              size += std::fabs(t.alpha * term);
            }
            const int64_t at = c.at(outer, inner, i, j);
            if (t.beta != 0.0f) want += t.beta * double{read(t.c, before.data(), at)};
            if (t.bias) want += double{bias.get(0, 0, 0, j)};
            const double tolerance = (size + 2) * 0x1p-24 * (4 + static_cast<double>(t.k) / 8) +
                                     std::fabs(want) * roundoff(t.c);
            ASSERT_NEAR(read(t.c, c.memory.data(), at), want, tolerance)
                << t << " at " << outer << "," << inner << "," << i << "," << j;
            const size_t bytes = dtype_bytes(t.c);
            std::memcpy(
                reinterpret_cast<char*>(rest.data()) + static_cast<size_t>(at) * bytes,
                reinterpret_cast<const char*>(before.data()) + static_cast<size_t>(at) * bytes,
                bytes);
          }
        }
      }
    }
    ASSERT_EQ(rest, before) << t << ": wrote outside c";
  }

  void SetUp() override {
    seed_ = std::random_device{}();
    random_.seed(seed_);
  }
  void TearDown() override {
    if (HasFailure()) printf("seed %u\n", seed_);
    set_num_threads(0);
  }

  unsigned seed_ = 0;
  std::mt19937 random_;
};

TEST_P(Gemm, odd_sizes) {
  for (const int64_t m : {0, 1, 2, 3, 4, 5, 7, 12, 97}) {
    for (const int64_t n : {0, 1, 3, 8, 17, 64, 129}) {
      for (const int64_t k : {0, 1, 2, 7, 16, 33, 300}) {
        for (const Order order : {Order::rows, Order::columns}) {
          check({.m = m, .n = n, .k = k, .b_order = order});
        }
      }
    }
  }
}

// Columns of b through panels: several of them, several parts, rests of both, every number of rows.
TEST_P(Gemm, few_rows_and_contiguous_columns) {
  for (int64_t m = 1; m <= 9; ++m) {
    for (const DType b : kDTypes) {
      for (const int64_t n : {32, 70}) {
        for (const int64_t k : {64, 131}) {
          check({.m = m, .n = n, .k = k, .b = b, .b_order = Order::columns});
        }
      }
    }
  }
  for (const DType b : kDTypes)
    check({.m = 1, .n = 65, .k = 4200, .b = b, .b_order = Order::columns});
}

TEST_P(Gemm, every_mix_of_storages_and_strides) {
  for (const int64_t m : {2, 9}) {
    for (const DType a : kDTypes) {
      for (const DType b : kDTypes) {
        for (const DType c : kDTypes) {
          for (const Order order : {Order::rows, Order::columns, Order::strided}) {
            check({.m = m, .n = 37, .k = 41, .a = a, .b = b, .c = c, .a_order = order});
            check({.m = m, .n = 37, .k = 41, .a = a, .b = b, .c = c, .b_order = order});
            check({.m = m, .n = 37, .k = 41, .a = a, .b = b, .c = c, .c_order = order});
          }
        }
      }
    }
  }
}

TEST_P(Gemm, alpha_beta_and_bias) {
  for (const int64_t m : {1, 23}) {
    for (const DType c : kDTypes) {
      for (const float alpha : {1.0f, -0.3f}) {
        for (const float beta : {0.0f, 1.0f, 0.7f}) {
          for (const bool bias : {false, true}) {
            for (const int64_t k : {0, 50}) {
              check({.m = m, .n = 70, .k = k, .c = c, .alpha = alpha, .beta = beta, .bias = bias});
            }
          }
        }
      }
    }
  }
}

TEST_P(Gemm, batches_with_strides_of_their_own_and_repeated_matrices) {
  for (const int64_t m : {1, 30}) {
    for (const bool repeat : {false, true}) {
      check({.m = m,
             .n = 20,
             .k = 40,
             .b_order = Order::columns,
             .batch = {2, 3},
             .repeat_b = repeat});
    }
  }
  check({.m = 8, .n = 20, .k = 40, .batch = {0, 3}});
}

// Sizes that are cut into several tiles of C and slices of the depth.
TEST_P(Gemm, larger_than_one_tile) {
  check({.m = 400, .n = 530, .k = 270, .b = DType::bfloat16, .b_order = Order::columns});
  check({.m = 3, .n = 1100, .k = 600, .b = DType::float16, .c = DType::bfloat16});
}

TEST_P(Gemm, bits_do_not_depend_on_threads_or_rows) {
  for (const Order order : {Order::rows, Order::columns}) {
    for (const DType dtype : kDTypes) {
      constexpr int64_t kM = 200, kN = 300, kK = 700;
      Matrix a(dtype, kM, kK, Order::rows), b(dtype, kK, kN, order);
      randomise(random_, a, kM, kK);
      randomise(random_, b, kK, kN);
      const auto product = [&](int64_t first_row, int64_t rows, int threads) {
        set_num_threads(threads);
        Matrix c(DType::float32, rows, kN, Order::rows);
        GemmProblem p{.m = rows, .n = kN, .k = kK};
        p.a = a.view, p.b = b.view, p.c = c.view;
        p.alpha = 0.3f;
        p.a.data = static_cast<char*>(a.view.data) +
                   static_cast<size_t>(first_row * a.view.row_stride) * dtype_bytes(dtype);
        cpu::gemm(p, table());
        std::vector<float> values;
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < kN; ++j)
            values.push_back(c.get(0, 0, i, j));
        }
        return values;
      };
      const std::vector<float> whole = product(0, kM, 1);
      for (const int threads : {2, 3})
        EXPECT_EQ(product(0, kM, threads), whole);
      for (const int64_t rows : {1, 2, 3, 4, 5, 8, 50}) {
        const int64_t first = 77;
        const std::vector<float> part = product(first, rows, 2);
        const std::vector<float> want(whole.begin() + first * kN,
                                      whole.begin() + (first + rows) * kN);
        EXPECT_EQ(part, want) << rows << " rows of " << dtype_name(dtype);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, Gemm, testing::ValuesIn(runnable_tiers()),
                         [](const auto& tier) { return std::string(tier.param->name); });

}  // namespace
}  // namespace flashmha::tests
