#!/bin/sh
# Checks the layout of every source file with clang-format (--fix: changes it).
set -eu
cd "$(dirname "$0")/.."

mode="--dry-run -Werror"
[ "${1:-}" = --fix ] && mode="-i"
# shellcheck disable=SC2086  # words on purpose
find include src apps tests examples bench python \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) -print0 2>/dev/null |
  xargs -0 -n 32 -P 2 clang-format $mode
