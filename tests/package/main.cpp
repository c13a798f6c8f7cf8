// Attention on the user's own memory, with a result that is known: when all keys are equal, every
// output row is the mean of the values that it sees.
#include <flashmha/flashmha.h>

#include <cmath>
#include <cstdio>
#include <vector>

bool refuses_bad_input();  // other.cpp: all public headers in a second file of the same program
bool tokenizes();          // which needs the libraries that FlashMHA needs

int main() {
  constexpr std::int64_t kSeqlen = 4;
  constexpr std::int64_t kHeadDim = 8;
  const flashmha::Shape shape{1, kSeqlen, 1, kHeadDim};
  std::vector<float> q(kSeqlen * kHeadDim, 0.5f);
  std::vector<float> k(kSeqlen * kHeadDim, 0.25f);
  std::vector<float> v;
  for (std::int64_t row = 0; row < kSeqlen; ++row) {
    v.insert(v.end(), kHeadDim, static_cast<float>(row));
  }

  const flashmha::AttentionResult result = flashmha::flash_attn_func(
      flashmha::view_of(q.data(), shape), flashmha::view_of(k.data(), shape),
      flashmha::view_of(v.data(), shape), {.causal = true});

  const float* out = result.out.as<float>();
  for (std::int64_t row = 0; row < kSeqlen; ++row) {
    const float expected = static_cast<float>(row) / 2.0f;  // mean of 0, 1, ..., row
    const float found = out[row * kHeadDim];
    if (!(std::fabs(found - expected) < 1e-5f)) {
      std::printf("row %d: expected %g, found %g\n", static_cast<int>(row), expected, found);
      return 1;
    }
  }
  if (!refuses_bad_input() || !tokenizes()) return 1;
  std::printf("FlashMHA %s works\n", std::string(flashmha::kVersion).c_str());
  return 0;
}
