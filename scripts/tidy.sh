#!/bin/sh
# clang-tidy over everything but the tests and the kernels, which are compiled once for each
# instruction set and full of what it knows nothing about:
#   scripts/tidy.sh <build folder> [jobs]
# A file is looked at again only when its preprocessed text or the checks have changed.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:?"usage: scripts/tidy.sh <build folder> [jobs]"}
jobs=${2:-$(nproc)}
cache=$build/tidy-cache
mkdir -p "$cache"

check_one() {
  file=$1
  # The compiler's own command for this file, up to its output.
  command=$(awk -v file="$file" '
    /"command":/ { command = $0 }
    /"file":/ && index($0, "\"" file "\"") { print command; exit }' "$build/compile_commands.json" |
    sed 's/^ *"command": "//; s/",$//; s/\\\(.\)/\1/g; s/ -o .*//; s/^[^ ]*ccache //')
  if [ -z "$command" ]; then
    # A build has the CUDA backend or its stand-in, and one kind of processor.
    case $file in
      "$root"/src/cuda/* | "$root"/src/no_cuda/* | "$root"/src/cpu/isa_*) return 0 ;;
    esac
    echo "tidy: $file is not built by any target" >&2
    return 1
  fi
  key=$( (cat "$root/.clang-tidy"; clang-tidy --version; eval "$command -E -P \"$file\"") |
    sha256sum | cut -c1-32)
  [ -e "$cache/$key" ] && return 0
  clang-tidy --quiet -p "$build" "$file" 2>/dev/null || return 1
  touch "$cache/$key"
}

if [ "${3:-}" != "" ]; then  # called again by xargs, for one file
  check_one "$3"
  exit
fi
find "$root/src" "$root/apps" "$root/examples" -name '*.cpp' -not -path '*/src/cpu/*_kernels.cpp' \
  -not -path '*/src/cpu/table.cpp' -print0 |
  xargs -0 -n 1 -P "$jobs" "$0" "$build" "$jobs"
