// Own drawing: a few lines, an axis, labels. The picture is 880 by 480 units.
#include "train/curve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace flashmha::train {
namespace {

struct Point {
  double x;  // step
  double y;  // loss
};
using Line = std::vector<Point>;

constexpr double kWidth = 880.0;
constexpr double kHeight = 480.0;
constexpr double kLeft = 64.0;  // of the plot
constexpr double kRight = 768.0;
constexpr double kTop = 84.0;
constexpr double kBottom = 420.0;
constexpr std::size_t kColumns = 704;  // a point a unit at most

constexpr const char* kStyle = R"(<style>
  :root { color-scheme: light dark; }
  .paper { fill: #ffffff; }
  text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #57606a; }
  .title { font-size: 17px; font-weight: 600; fill: #1f2328; }
  .grid { stroke: #d8dee4; stroke-width: 1; }
  .axis { stroke: #8c959f; stroke-width: 1; }
  .line { fill: none; stroke-linejoin: round; stroke-linecap: round; }
  .raw { stroke: #4c8ae0; stroke-width: 1; stroke-opacity: 0.32; }
  .smooth { stroke: #1f6fd6; stroke-width: 2.2; }
  .eval { stroke: #d9622b; stroke-width: 2.2; }
  .dot { fill: #d9622b; stroke: #ffffff; stroke-width: 1.2; }
  .train-label { fill: #1f6fd6; font-weight: 600; }
  .eval-label { fill: #c2521f; font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; }
    text { fill: #9198a1; }
    .title { fill: #f0f6fc; }
    .grid { stroke: #262c36; }
    .axis { stroke: #6e7681; }
    .raw { stroke: #6cb0ff; }
    .smooth { stroke: #58a6ff; }
    .eval { stroke: #f0883e; }
    .dot { fill: #f0883e; stroke: #0d1117; }
    .train-label { fill: #6cb0ff; }
    .eval-label { fill: #f0883e; }
  }
</style>
)";

// From steps and losses to the picture.
struct Frame {
  Ticks steps;
  Ticks losses;
  double last_step;

  double x(double step) const {
    return kLeft + (step - steps.first) / (last_step - steps.first) * (kRight - kLeft);
  }
  double y(double loss) const {
    return kBottom - (loss - losses.first) / (losses.last() - losses.first) * (kBottom - kTop);
  }
};

// Means of runs of points such that at most kColumns remain.
Line thin_out(const Line& line) {
  const std::size_t run = (line.size() + kColumns - 1) / kColumns;
  if (run <= 1) return line;
  Line thin;
  for (std::size_t begin = 0; begin < line.size(); begin += run) {
    const std::size_t end = std::min(begin + run, line.size());
    Point sum{0.0, 0.0};
    for (std::size_t i = begin; i < end; ++i)
      sum = {sum.x + line[i].x, sum.y + line[i].y};
    const auto count = static_cast<double>(end - begin);
    thin.push_back({sum.x / count, sum.y / count});
  }
  return thin;
}

// The mean of the points around each one: 2 % of all to either side. Near the start, where the loss
// falls fast, fewer, so that the window stays centred; at the end what there is.
Line moving_average(const Line& line) {
  const std::size_t reach = line.size() / 50;
  std::vector<double> sums{0.0};
  for (const Point& point : line)
    sums.push_back(sums.back() + point.y);
  Line smooth;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const std::size_t side = std::min(reach, i);
    const std::size_t end = std::min(i + side + 1, line.size());
    const double sum = sums[end] - sums[i - side];
    smooth.push_back({line[i].x, sum / static_cast<double>(end - (i - side))});
  }
  return smooth;
}

std::string path_of(const Line& line, const Frame& frame, const char* style) {
  std::string points;
  for (const Point& point : line) {
    points += fmt::format("{}{:.1f},{:.1f}", points.empty() ? "" : " ", frame.x(point.x),
                          frame.y(point.y));
  }
  return fmt::format("<polyline class=\"line {}\" points=\"{}\"/>\n", style, points);
}

// 1500 -> "1,500": digits in groups of three.
std::string grouped(std::int64_t value) {
  const std::string digits = std::to_string(value);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string draw_axes(const Frame& frame) {
  std::string svg;
  for (int i = 0; i < frame.losses.count; ++i) {
    const double loss = frame.losses.first + frame.losses.step * i;
    svg += fmt::format(
        "<line class=\"{}\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n"
        "<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:.{}f}</text>\n",
        i == 0 ? "axis" : "grid", kLeft, kRight, frame.y(loss), frame.y(loss), kLeft - 10.0,
        frame.y(loss) + 4.5, loss, frame.losses.decimals);
  }
  for (int i = 0; i < frame.steps.count; ++i) {
    const double step = frame.steps.first + frame.steps.step * i;
    if (step > frame.last_step) break;
    svg += fmt::format(
        "<line class=\"axis\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/>\n"
        "<text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\">{4}</text>\n",
        frame.x(step), kBottom, kBottom + 5.0, kBottom + 22.0,
        grouped(static_cast<std::int64_t>(std::llround(step))));
  }
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\n",
                     (kLeft + kRight) / 2.0, kBottom + 44.0);
  return svg;
}

// The names of the lines with their last values, beside their ends and not on each other.
std::string draw_labels(const Line& training, const Line& evaluation, const Frame& frame) {
  constexpr double kGap = 34.0;  // two lines of text
  struct Label {
    double y;
    const char* style;
    const char* name;
    double value;
  };
  std::vector<Label> labels;
  if (!training.empty()) {
    labels.push_back({frame.y(training.back().y), "train-label", "training", training.back().y});
  }
  if (!evaluation.empty()) {
    labels.push_back({frame.y(evaluation.back().y), "eval-label", "held out", evaluation.back().y});
  }
  std::ranges::sort(labels, {}, &Label::y);
  if (labels.size() == 2 && labels[1].y - labels[0].y < kGap) {
    const double middle = (labels[0].y + labels[1].y) / 2.0;
    const double first = std::min(middle - kGap / 2.0, kBottom - 12.0 - kGap);
    labels[0].y = first;
    labels[1].y = first + kGap;
  }
  std::string svg;
  for (const Label& label : labels) {
    svg += fmt::format(
        "<text class=\"{0}\" x=\"{1}\" y=\"{2:.1f}\">{3}</text>\n"
        "<text class=\"{0}\" x=\"{1}\" y=\"{4:.1f}\">{5:.3f}</text>\n",
        label.style, kRight + 12.0, label.y - 3.0, label.name, label.y + 13.0, label.value);
  }
  return svg;
}

Frame frame_of(const Line& training, const Line& evaluation, std::int64_t num_steps) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  const double last_step = std::max(1.0, static_cast<double>(num_steps));
  for (const Line* line : {&training, &evaluation}) {
    for (const Point& point : *line) {
      low = std::min(low, point.y);
      high = std::max(high, point.y);
    }
  }
  if (low > high) low = 0.0, high = 1.0;
  Ticks steps = round_ticks(0.0, last_step, 8);
  if (steps.step < 1.0) steps = {.first = 0.0, .step = 1.0, .count = int(last_step) + 1};
  return {.steps = steps, .losses = round_ticks(low, high, 6), .last_step = last_step};
}

}  // namespace

Ticks round_ticks(double low, double high, int count) {
  if (!(high > low)) high = low + std::max(1e-3, std::abs(low) * 1e-3);
  const double raw = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10.0 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw * (1.0 - 1e-9)) {
      step = factor * power;
      break;
    }
  }
  const double first = std::floor(low / step + 1e-9) * step;
  const double last = std::ceil(high / step - 1e-9) * step;
  return {.first = first,
          .step = step,
          .count = static_cast<int>(std::lround((last - first) / step)) + 1,
          .decimals = std::max(0, -static_cast<int>(std::floor(std::log10(step) + 1e-9)))};
}

std::string draw_loss_curve(std::span<const StepRecord> records) {
  Line training;
  Line evaluation;
  for (const StepRecord& record : records) {
    const auto step = static_cast<double>(record.step);
    if (record.loss) training.push_back({step, *record.loss});
    if (record.eval_loss) evaluation.push_back({step, *record.eval_loss});
  }
  const Line raw = thin_out(training);
  const Line smooth = moving_average(raw);
  const StepRecord last = records.empty() ? StepRecord{} : records.back();
  const Frame frame = frame_of(raw, evaluation, last.step);

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" role=\"img\" aria-label=\"Loss over steps\">\n",
      kWidth, kHeight);
  svg += kStyle;
  svg += fmt::format("<rect class=\"paper\" width=\"{}\" height=\"{}\"/>\n", kWidth, kHeight);
  svg += fmt::format(
      "<text class=\"title\" x=\"{0}\" y=\"34\">Loss</text>\n"
      "<text x=\"{0}\" y=\"56\">cross-entropy of the next token, nats; {1} steps, {2} "
      "tokens</text>\n",
      kLeft - 34.0, grouped(last.step), grouped(last.num_tokens));
  svg += draw_axes(frame);
  svg += path_of(raw, frame, "raw");
  svg += path_of(smooth, frame, "smooth");
  svg += path_of(evaluation, frame, "eval");
  for (const Point& point : evaluation) {
    svg += fmt::format("<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.4\"/>\n",
                       frame.x(point.x), frame.y(point.y));
  }
  svg += draw_labels(smooth, evaluation, frame);
  return svg + "</svg>\n";
}

}  // namespace flashmha::train
