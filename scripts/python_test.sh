#!/bin/sh
# Builds the Python package against a build of the library, as pip does, and runs its tests:
#   scripts/python_test.sh <build folder>
# Exits with 77 where Python, venv or the package index are missing. Tests that need PyTorch or
# Transformers run where the system's Python has them.
set -eu
cd "$(dirname "$0")/.."

build=$(cd "${1:?"usage: scripts/python_test.sh <build folder>"}" && pwd)
venv=$build/python/venv
python=${PYTHON:-python3}
mkdir -p "$build/python"
log=$build/python/log

skip() {
  echo "python: skipped: $1" >&2
  tail -n 3 "$log" >&2
  exit 77
}

: >"$log"
"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>"$log" ||
  skip "no python3 with its headers (Debian: python3-dev)"
if [ ! -x "$venv/bin/pytest" ]; then
  "$python" -m venv --clear --system-site-packages "$venv" >"$log" 2>&1 ||
    skip "no python3 with venv (Debian: python3-venv)"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --timeout 20 --retries 1 \
    --ignore-installed cmake nanobind scikit-build-core pytest numpy >"$log" 2>&1 ||
    skip "pip cannot reach its package index"
fi

# The library of the build is used as an installed package, so that only the extension is compiled.
cmake --install "$build" --prefix "$build/python/prefix" >"$log"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
  --force-reinstall . -C cmake.source-dir=python -C build-dir="$build/python/extension" \
  -C cmake.define.CMAKE_PREFIX_PATH="$build/python/prefix"
# What the program of this build says is compared with what Python says.
[ -x "$build/apps/flashmha" ] && export FLASHMHA_PROGRAM="$build/apps/flashmha"
cd python/tests  # the installed package is tested, not the folder
"$venv/bin/python" -m pytest -q -p no:cacheprovider
