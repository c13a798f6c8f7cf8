// log.jsonl: a JSON object a line, a line a step.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "flashmha/trainer.h"

namespace flashmha::train {

std::string format_record(const StepRecord& record);

// The lines of the file up to a step; without what comes after the first line that is cut off or
// out of order. None if there is no file.
std::vector<std::string> read_log_lines(const std::filesystem::path& path, std::int64_t last_step);

// The records of those lines.
std::vector<StepRecord> read_log(const std::filesystem::path& path, std::int64_t last_step);

}  // namespace flashmha::train
