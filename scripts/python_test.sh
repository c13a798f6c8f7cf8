#!/bin/sh
# Tests the Python package:
#   scripts/python_test.sh <build folder> [pytest's arguments]     builds the extension against that
#       build of the library, as pip does, and installs it into an environment of its own. With
#       FLASHMHA_OFFLINE=1 nothing is fetched: PYTHON must have nanobind, scikit-build-core, pytest
#       and NumPy, and CMake 3.26 be there.
#   scripts/python_test.sh --installed <folder> [...]              tests the package in that folder
#       (of pip install --target), and builds nothing.
# PYTHON is the interpreter (python3). Exits with 77 where it, its headers, venv or the package index
# are missing. Tests of PyTorch, Transformers, JAX, CuPy and of GPUs run where there are such;
# FLASHMHA_REQUIRE=torch,transformers,cuda makes it an error that there are not.
set -eu
cd "$(dirname "$0")/.."

usage="usage: scripts/python_test.sh <build folder> | --installed <folder> [pytest's arguments]"
python=${PYTHON:-python3}

run_tests() {
  cd python/tests  # the installed package is tested, not the folder
  # shellcheck disable=SC2086  # words on purpose
  exec "$@" -rs -p no:cacheprovider $arguments
}

# Words of pytest have no blanks here; one that needs them: PYTEST_ADDOPTS.
if [ "${1:?$usage}" = --installed ]; then
  PYTHONPATH=$(cd "${2:?$usage}" && pwd)${PYTHONPATH:+:$PYTHONPATH}
  export PYTHONPATH
  shift 2
  arguments=$*
  run_tests "$python" -m pytest -q
fi

build=$(cd "$1" && pwd)
shift
arguments=$*
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
if [ "${FLASHMHA_OFFLINE:-0}" != 0 ]; then
  into="--target $build/python/site --upgrade"
  PYTHONPATH=$build/python/site${PYTHONPATH:+:$PYTHONPATH}
  export PYTHONPATH
else
  venv=$build/python/venv
  into=--force-reinstall
  if [ ! -x "$venv/bin/pytest" ] || [ ! -x "$venv/bin/cmake" ] || [ ! -x "$venv/bin/ruff" ]; then
    "$python" -m venv --clear --system-site-packages "$venv" >"$log" 2>&1 ||
      skip "no python3 with venv (Debian: python3-venv)"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --timeout 20 --retries 1 \
      --ignore-installed cmake nanobind scikit-build-core pytest numpy ruff >"$log" 2>&1 ||
      skip "pip cannot reach its package index"
  fi
  python=$venv/bin/python
fi

# The library of the build is used as an installed package, so that only the extension is compiled.
cmake --install "$build" --prefix "$build/python/prefix" >"$log"
# shellcheck disable=SC2086  # words on purpose
"$python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
  --no-index $into . -C cmake.source-dir=python -C build-dir="$build/python/extension" \
  -C cmake.define.CMAKE_PREFIX_PATH="$build/python/prefix"
# What the program of this build says is compared with what Python says.
[ -x "$build/apps/flashmha" ] && export FLASHMHA_PROGRAM="$build/apps/flashmha"
run_tests "$python" -m pytest -q
