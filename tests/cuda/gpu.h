// The GPU of a test.
#pragma once

#include <gtest/gtest.h>

#include "flashmha/device.h"

namespace flashmha::tests {

inline constexpr Device kGpu{DeviceType::cuda, 0};

class OnGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (num_devices(DeviceType::cuda) == 0) GTEST_SKIP() << "no GPU can be used here";
  }
};

}  // namespace flashmha::tests
