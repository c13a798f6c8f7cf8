// Which instruction set is chosen, and what the probes return.

#include "cpu/isa.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "flashmha/error.h"

namespace flashmha::tests {
namespace {

TEST(Isa, tiers_are_listed_from_the_most_general_on) {
  const auto tiers = cpu::compiled_tiers();
  ASSERT_FALSE(tiers.empty());
  EXPECT_STREQ(tiers[0].table->name, "portable");
  EXPECT_TRUE(tiers[0].supported());
  for (size_t i = 1; i < tiers.size(); ++i) {
    EXPECT_GE(tiers[i].table->lanes, tiers[i - 1].table->lanes);
    // Each tier includes the one before.
    EXPECT_TRUE(tiers[i - 1].supported() || !tiers[i].supported());
  }
}

TEST(Isa, the_fastest_supported_tier_is_the_default) {
  const char* fastest = nullptr;
  for (const cpu::Tier& tier : cpu::compiled_tiers()) {
    if (tier.supported()) fastest = tier.table->name;
  }
  EXPECT_STREQ(cpu::select_kernels(nullptr).name, fastest);
  EXPECT_STREQ(cpu::select_kernels("").name, fastest);
}

TEST(Isa, a_tier_can_be_named) {
  for (const cpu::Tier& tier : cpu::compiled_tiers()) {
    if (!tier.supported()) continue;
    EXPECT_EQ(&cpu::select_kernels(tier.table->name), tier.table);
  }
}

// CTest runs this once for each tier (flashmha_test_on_tiers).
TEST(Isa, the_environment_names_a_tier) {
  const char* named = std::getenv("FLASHMHA_CPU_ISA");
  EXPECT_STREQ(cpu::kernels().name, named ? named : cpu::select_kernels(nullptr).name);
}

TEST(Isa, unknown_or_unsupported_names_are_refused_with_the_list) {
  for (const cpu::Tier& tier : cpu::compiled_tiers()) {
    if (tier.supported()) continue;
    EXPECT_THROW(cpu::select_kernels(tier.table->name), Error);
  }
  try {
    cpu::select_kernels("avx1024");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_EQ(std::string(error.what()),
              "[FLASHMHA_CPU_ISA] must name an instruction set that this machine can run (" +
                  cpu::supported_tier_names() + "); got \"avx1024\"");
  }
}

TEST(Isa, probes_do_what_they_count) {
  for (const cpu::Tier& tier : cpu::compiled_tiers()) {
    if (!tier.supported()) continue;
    const cpu::KernelTable& table = *tier.table;
    // x -> 0.999 x + 0.001 goes to 1 on every lane: lanes * chains of them in the end.
    float sink = 3.0f;
    const int64_t flops = table.probe->fma(20000, &sink);
    const double lanes = static_cast<double>(flops) / (2 * 20000);
    EXPECT_NEAR(sink, lanes, 1e-4 * lanes) << table.name;
    std::vector<float> data(64 * 5, -1.0f);
    for (size_t i = 0; i < data.size(); ++i) {
      data[i] = static_cast<float>(i + 1);
      table.probe->read(data.data(), static_cast<int64_t>(data.size()), &sink);
      EXPECT_EQ(sink, static_cast<float>(i + 1)) << table.name;
    }
  }
}

}  // namespace
}  // namespace flashmha::tests
