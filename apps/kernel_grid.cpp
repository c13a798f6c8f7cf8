#include "kernel_grid.h"

#include <cmath>
#include <functional>
#include <memory>

#include "measure.h"
#include "peak.h"

namespace flashmha::app {
namespace {

double cache_bytes(const GridFlags& flags) {
  return static_cast<double>(flags.cache_mib) * (1 << 20);
}

// The limit that a pass runs into, on a number of threads.
struct Probe {
  std::function<void()> run;
  double work = 0.0;  // operations or bytes of a run
};

Probe probe_of(Pass pass, int threads, const GridFlags& flags) {
  if (pass == Pass::decode) {
    auto probe = std::make_shared<ReadProbe>(threads, static_cast<std::size_t>(cache_bytes(flags)));
    return {.run = [probe] { probe->run(); }, .work = probe->bytes()};
  }
  auto probe = std::make_shared<FmaProbe>(threads);
  return {.run = [probe] { probe->run(); }, .work = probe->flops()};
}

using Seconds = std::vector<double>;

Spread scaled(const Seconds& seconds, double factor) {
  Seconds values;
  for (const double value : seconds)
    values.push_back(value * factor);
  return spread_of(std::move(values));
}

// Rate, and share of the probe's rate, of runs made next to each other.
void add_speed(Json& row, const std::string& who, const KernelShape& shape, const Seconds& kernel,
               const Seconds& probe, double probe_work) {
  const bool decode = shape.pass == Pass::decode;
  const double work = decode ? shape.kv_bytes() : shape.flops();
  Seconds rates;
  for (const double seconds : kernel)
    rates.push_back(work / seconds * 1e-9);
  const Spread rate = spread_of(std::move(rates));
  const std::string unit = decode ? "_gbps" : "_gflops";
  row[who + unit] = rate.median;
  row[who + "_min" + unit] = rate.min;
  row[who + "_max" + unit] = rate.max;
  row[who + "_peak_share"] = ratio_of(probe, kernel).median * work / probe_work;
}

Json describe_shape(const KernelShape& shape) {
  return {{"pass", pass_name(shape.pass)}, {"dtype", dtype_name(shape.dtype)},
          {"head_dim", shape.head_dim},    {"seq_length", shape.seq_length},
          {"causal", shape.causal},        {"batch_size", shape.batch_size},
          {"heads", shape.heads},          {"kv_heads", shape.kv_heads}};
}

}  // namespace

std::vector<KernelShape> grid_of(const GridFlags& flags) {
  std::vector<KernelShape> grid;
  const auto add = [&](Pass pass, DType dtype, std::int64_t head_dim, std::int64_t seq_length) {
    KernelShape shape{.pass = pass,
                      .dtype = dtype,
                      .batch_size = flags.batch_size,
                      .seq_length = seq_length,
                      .heads = flags.heads,
                      .kv_heads = flags.kv_heads > 0 ? flags.kv_heads : flags.heads,
                      .head_dim = head_dim};
    if (pass == Pass::decode) {
      shape.batch_size = static_cast<std::int64_t>(
          std::ceil(cache_bytes(flags) / shape.kv_bytes() * static_cast<double>(flags.batch_size)));
      grid.push_back(shape);
      return;
    }
    for (const bool causal : flags.causal) {
      shape.causal = causal;
      grid.push_back(shape);
    }
  };
  for (const Pass pass : flags.passes) {
    for (const DType dtype : flags.dtypes) {
      for (const std::int64_t head_dim : flags.head_dims) {
        for (const std::int64_t seq_length : flags.seq_lengths)
          add(pass, dtype, head_dim, seq_length);
      }
    }
  }
  return grid;
}

Json measure_kernel(const KernelShape& shape, const GridFlags& flags) {
  const int threads = num_threads();
  KernelCase kernel(shape);
  const Probe probe_one = probe_of(shape.pass, 1, flags);
  const Probe probe_all = probe_of(shape.pass, threads, flags);
  std::vector<std::function<void()>> candidates = {probe_one.run, [&] { kernel.run_flash(1); }};
  if (threads > 1) {
    candidates.push_back([&] {
      set_num_threads(threads);  // the run before had one
      probe_all.run();
    });
    candidates.push_back([&] { kernel.run_flash(threads); });
  }
  if (flags.plain) candidates.push_back([&] { kernel.run_plain(threads); });
  const auto seconds = time_in_turn(candidates, {.repetitions = flags.repetitions});
  const Seconds& flash = threads > 1 ? seconds[3] : seconds[1];

  Json row = describe_shape(shape);
  row["flash_ms"] = scaled(flash, 1e3).median;
  add_speed(row, "one_thread", shape, seconds[1], seconds[0], probe_one.work);
  if (threads > 1) {
    add_speed(row, "threads", shape, seconds[3], seconds[2], probe_all.work);
    row["scaling_ratio"] = ratio_of(seconds[1], seconds[3]).median;
  }
  if (flags.plain) {
    row["plain_ms"] = scaled(seconds.back(), 1e3).median;
    row["plain_over_flash_ratio"] = ratio_of(seconds.back(), flash).median;
    row["flash_extra_bytes"] = kernel.flash_extra_bytes();
    row["plain_extra_bytes"] = kernel.plain_extra_bytes();
  }
  set_num_threads(threads);
  return row;
}

}  // namespace flashmha::app
