#include "command.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "flashmha/device.h"
#include "flashmha/error.h"

namespace flashmha::app {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_writing(const std::string& path, const std::string& reason) {
  throw Error(ErrorCode::io, "[--json] cannot write '" + path + "': " + reason);
}

// Devices and pipes (/dev/stdout) are written in place, everything else through a neighbour.
bool is_replaceable(const fs::path& path) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  return !fs::exists(status) || fs::is_regular_file(status);
}

// In the same folder, so that the rename stays inside one file system.
fs::path neighbour(const fs::path& path) {
  fs::path result = path;
  result += ".partial-" + std::to_string(::getpid());
  return result;
}

void check_writable(const std::string& path) {
  if (fs::is_directory(path)) fail_writing(path, "it is a directory");
  if (!is_replaceable(path)) return;
  const fs::path probe = neighbour(path);
  errno = 0;
  if (!std::ofstream(probe)) fail_writing(path, std::strerror(errno));
  fs::remove(probe);
}

}  // namespace

CLI::App* add_command(CLI::App& program, CommonFlags& flags, const std::string& name,
                      const std::string& description, const std::string& example) {
  CLI::App* command = program.add_subcommand(name, description);
  command->footer("Example: " + example);
  command->add_option("--json", flags.json_path, "Write the results to this file as JSON")
      ->type_name("FILE");
  command->add_option("--threads", flags.threads, "CPU threads; 0: all that the process may use")
      ->check(CLI::Range(0, 4096))
      ->type_name("N")
      ->capture_default_str();
  return command;
}

void add_device_flag(CLI::App& command, Device& device) {
  command
      .add_option_function<std::string>(
          "--device", [&device](const std::string& name) { device = parse_device(name); },
          "Where to run: cpu, or cuda:N in a build with CUDA")
      ->type_name("NAME")
      ->default_str(device_name(device));
}

void prepare(const CommonFlags& flags) {
  if (!flags.json_path.empty()) check_writable(flags.json_path);
  if (flags.threads > 0) set_num_threads(flags.threads);
}

void write_json(const CommonFlags& flags, const Json& report) {
  if (flags.json_path.empty()) return;
  const fs::path path = flags.json_path;
  const fs::path target = is_replaceable(path) ? neighbour(path) : path;
  std::ofstream file(target);
  file << report.dump(2) << '\n';
  file.close();
  std::error_code error;
  if (file && target != path) fs::rename(target, path, error);
  if (file && !error) return;
  const std::string reason = error ? error.message() : std::strerror(errno);
  if (target != path) fs::remove(target, error);
  fail_writing(flags.json_path, reason);
}

}  // namespace flashmha::app
