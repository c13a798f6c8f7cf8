#!/bin/sh
# Builds a fuzz target and looks for inputs that break it:   scripts/fuzz.sh <target> <seconds>
# Targets: tests/fuzz/targets.cmake. Exits with 77 where there is no clang with libFuzzer.
#
# What is found is kept in build/fuzz/findings; give that file to the program to see it again.
# Inputs that reach new code are collected in build/fuzz/corpus, where the next run goes on.
set -eu
cd "$(dirname "$0")/.."

target=${1:?"usage: scripts/fuzz.sh <target> <seconds>"}
seconds=${2:?"usage: scripts/fuzz.sh <target> <seconds>"}

probe=$(mktemp)
trap 'rm -f "$probe"' EXIT
if ! echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
  clang++ -x c++ -fsanitize=fuzzer,address - -o "$probe" 2>/dev/null; then
  echo "fuzz: skipped: no clang++ with libFuzzer (Debian: clang and libclang-rt-dev)" >&2
  exit 77
fi

cmake --preset fuzz --log-level=WARNING >/dev/null
cmake --build --preset fuzz --target "${target}_fuzz"
corpus=build/fuzz/corpus/$target
findings=build/fuzz/findings
mkdir -p "$corpus" "$findings"
# Seconds an input, megabytes of the process.
build/fuzz/tests/fuzz/"${target}_fuzz" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 \
  -max_len=16384 -dict=tests/fuzz/json.dict -artifact_prefix="$findings/$target-" \
  -print_final_stats=1 "$corpus" "tests/fuzz/corpus/$target"
