// flashmha sanity-check: is flash attention the same model as plain attention?
#include <fmt/format.h>

#include <memory>

#include "command.h"
#include "flashmha/sanity.h"

namespace flashmha::app {
namespace {

struct SanityFlags {
  CommonFlags common;
  model::SanityOptions options;
  Device device;
};

// What is checked: dtypes, with full attention and with a window.
struct Variant {
  DType dtype;
  bool windowed;
};

constexpr Variant kVariants[] = {{DType::float32, false},
                                 {DType::float32, true},
                                 {DType::bfloat16, false},
                                 {DType::bfloat16, true}};
// Flash attention on a GPU computes in 16 bits.
constexpr Variant kGpuVariants[] = {{DType::bfloat16, false},
                                    {DType::bfloat16, true},
                                    {DType::float16, false},
                                    {DType::float16, true}};

class Report {
 public:
  void begin(const Variant& variant, std::int64_t window) {
    heading_ = dtype_name(variant.dtype);
    if (variant.windowed) heading_ += fmt::format(", window of {}", window);
    fmt::print("{}{}\n", checks_.empty() ? "" : "\n", heading_);
  }

  void add(const model::Check& check) {
    fmt::print("  {}  {:<36} error {:.1e}  tolerance {:.1e}  {}\n",
               check.passed() ? "PASS" : "FAIL", check.name, check.error, check.tolerance,
               check.detail);
    std::fflush(stdout);
    num_failed_ += check.passed() ? 0 : 1;
    checks_.push_back({{"model", heading_},
                       {"name", check.name},
                       {"passed", check.passed()},
                       {"relative_error", check.error},
                       {"relative_tolerance", check.tolerance},
                       {"detail", check.detail}});
  }

  int num_failed() const { return num_failed_; }
  const Json& checks() const { return checks_; }

 private:
  std::string heading_;
  Json checks_ = Json::array();
  int num_failed_ = 0;
};

ExitCode run(const SanityFlags& flags) {
  const model::SanityOptions& options = flags.options;
  Report report;
  const bool on_gpu = flags.device.type != DeviceType::cpu;
  for (const Variant& variant : on_gpu ? kGpuVariants : kVariants) {
    model::ModelConfig config = model::default_config();
    config.device = flags.device;
    config.dtype = variant.dtype;
    // Scores of about 1, as in a trained model: 0.02 would make attention an average.
    config.initializer_range = 0.05f;
    if (variant.windowed) config.attention.sliding_window = options.seqlen / 4;
    report.begin(variant, config.attention.sliding_window);
    model::ModelTrio models(config, options.seed);
    model::check_model(models, options, [&](const model::Check& check) { report.add(check); });
  }
  fmt::print(
      "\n{} of {} checks passed. Errors are relative to the largest expected magnitude;\n"
      "the tolerance is {} times the error of plain attention in the same dtype, plus rounding.\n",
      report.checks().size() - static_cast<std::size_t>(report.num_failed()),
      report.checks().size(), options.slack);
  write_json(flags.common, {{"device", device_name(flags.device)},
                            {"batch_size", options.batch},
                            {"seq_length", options.seqlen},
                            {"new_tokens", options.new_tokens},
                            {"seed", options.seed},
                            {"slack", options.slack},
                            {"num_failed", report.num_failed()},
                            {"checks", report.checks()}});
  return report.num_failed() == 0 ? ExitCode::ok : ExitCode::failed;
}

}  // namespace

void add_sanity_check(CLI::App& program, ExitCode& exit_code) {
  auto flags = std::make_shared<SanityFlags>();
  CLI::App* command = add_command(
      program, flags->common, "sanity-check",
      "Compare flash with plain attention on the default model; exit code 1 on a mismatch.",
      "flashmha sanity-check --json sanity.json");
  const auto add_size = [&](const std::string& name, std::int64_t& size, std::int64_t smallest,
                            const std::string& what) {
    command->add_option(name, size, what)
        ->check(CLI::Range(smallest, std::int64_t{1} << 16))
        ->type_name("N")
        ->capture_default_str();
  };
  add_size("--batch-size", flags->options.batch, 1, "Sequences in a batch");
  add_size("--seq-length", flags->options.seqlen, 8, "Tokens in a sequence");
  add_size("--new-tokens", flags->options.new_tokens, 1, "Tokens to generate");
  add_device_flag(*command, flags->device);
  command->add_option("--seed", flags->options.seed, "Of weights and tokens")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--slack", flags->options.slack, "How many times plain's error is allowed")
      ->check(CLI::NonNegativeNumber)
      ->type_name("X")
      ->capture_default_str();
  command->callback([flags, &exit_code] {
    prepare(flags->common);
    exit_code = run(*flags);
  });
}

}  // namespace flashmha::app
