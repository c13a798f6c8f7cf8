#!/bin/sh
# Installs what building needs and is missing: scripts/setup.sh run | test
# On Debian and its relatives by apt; elsewhere it says what is needed and leaves it to you.
set -eu

purpose=${1:?"usage: scripts/setup.sh run|test"}

packages="cmake ninja-build pkg-config libdlpack-dev libfmt-dev libcli11-dev nlohmann-json3-dev
  libonig-dev libutf8proc-dev"
if [ "$purpose" = test ]; then
  packages="$packages libgtest-dev clang clang-format clang-tidy libclang-rt-dev"
fi
command -v c++ >/dev/null || packages="g++ $packages"

if ! command -v apt-get >/dev/null; then
  command -v cmake >/dev/null && command -v ninja >/dev/null && exit 0
  echo "setup: not a Debian system. Install with your package manager what these are there:" >&2
  echo "  $packages" >&2
  exit 1
fi

missing=""
for package in $packages; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
  [ "$status" = "install ok installed" ] || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ]; then
  as_root=""
elif command -v sudo >/dev/null; then
  as_root="sudo"
else
  echo "setup: these packages are missing, and installing them needs root or sudo:" >&2
  echo "  apt-get install$missing" >&2
  exit 1
fi

echo "setup: installing$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# The lists may be absent or stale: fetch them only if the first try fails.
install_missing() {
  # shellcheck disable=SC2086  # words on purpose
  $as_root apt-get install -y --no-install-recommends $missing >"$log" 2>&1
}
if ! install_missing; then
  if ! $as_root apt-get update >"$log" 2>&1 || ! install_missing; then
    tail -n 20 "$log" >&2
    echo "setup: apt-get could not install:$missing" >&2
    exit 1
  fi
fi
