#include "train/log.h"

#include <fmt/format.h>

#include <limits>

#include "core/check.h"
#include "io/file.h"
#include "io/json.h"

namespace flashmha::train {
namespace {

StepRecord parse_record(const std::string& line, const std::string& where) {
  const io::Json value = io::parse_json(line, where);
  const io::JsonObject object(value, where);
  StepRecord record{.step = object.integer("step"), .num_tokens = object.integer("num_tokens")};
  if (object.has("loss")) {
    record.loss = object.number("loss");
    record.learning_rate = object.number("learning_rate");
    record.gradient_norm = object.number("gradient_norm");
    record.tokens_per_second = object.number("tokens_per_second");
  }
  if (object.has("eval_loss")) record.eval_loss = object.number("eval_loss");
  return record;
}

struct Line {
  std::string text;
  StepRecord record;
};

std::vector<Line> read_lines(const std::filesystem::path& path, std::int64_t last_step) {
  std::vector<Line> lines;
  if (!std::filesystem::exists(path)) return lines;
  const std::string text =
      io::read_text_file(path.string(), std::numeric_limits<std::size_t>::max());
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // cut off
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    try {
      const StepRecord record = parse_record(line, "[Trainer] '" + path.string() + "'");
      if (record.step > last_step || (!lines.empty() && record.step <= lines.back().record.step)) {
        break;
      }
      lines.push_back({.text = line, .record = record});
    } catch (const Error&) {
      break;
    }
  }
  return lines;
}

}  // namespace

std::string format_record(const StepRecord& record) {
  std::string line = fmt::format(R"({{"step":{},"num_tokens":{})", record.step, record.num_tokens);
  if (record.loss) {
    line += fmt::format(
        R"(,"loss":{:.9g},"learning_rate":{},"gradient_norm":{:.9g},"tokens_per_second":{:.1f})",
        *record.loss, static_cast<float>(record.learning_rate), record.gradient_norm,
        record.tokens_per_second);
  }
  if (record.eval_loss) line += fmt::format(R"(,"eval_loss":{:.9g})", *record.eval_loss);
  return line + "}";
}

std::vector<std::string> read_log_lines(const std::filesystem::path& path, std::int64_t last_step) {
  std::vector<std::string> texts;
  for (Line& line : read_lines(path, last_step))
    texts.push_back(std::move(line.text));
  return texts;
}

std::vector<StepRecord> read_log(const std::filesystem::path& path, std::int64_t last_step) {
  std::vector<StepRecord> records;
  for (const Line& line : read_lines(path, last_step))
    records.push_back(line.record);
  return records;
}

}  // namespace flashmha::train
