#!/bin/sh
# Builds the CUDA backend with its tests and measures the library:   scripts/cuda_builds.sh [jobs]
# Then the GPU tests run, or say that they are skipped. Exits with 77 where there is no nvcc.
set -eu
cd "$(dirname "$0")/.."

jobs=${1:-$(nproc)}
most_bytes=40000000  # of the stripped library

if ! command -v nvcc >/dev/null && ! [ -x /usr/local/cuda/bin/nvcc ]; then
  echo "cuda: skipped: there is no nvcc (CUDA toolkit 12.8 or newer)"
  exit 77
fi

start=$(date +%s)
cmake --preset cuda -DFLASHMHA_BUILD_TESTS=ON --log-level=WARNING >/dev/null
cmake --build --preset cuda --parallel "$jobs" \
  --target flashmha flashmha_program cuda_test test_flash_attention
stripped=$(mktemp)
trap 'rm -f "$stripped"' EXIT
strip --strip-unneeded -o "$stripped" build/cuda/libflashmha.a
bytes=$(stat -c %s "$stripped")
echo "cuda: built in $(($(date +%s) - start)) s; the stripped library has $bytes bytes"
if [ "$bytes" -ge "$most_bytes" ]; then
  echo "cuda: the stripped library must stay below $most_bytes bytes" >&2
  exit 1
fi
ctest --preset cuda -L gpu
