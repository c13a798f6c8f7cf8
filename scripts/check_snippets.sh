#!/bin/sh
# Compiles the C++ that a document shows, without running it:
#   scripts/check_snippets.sh <compiler> <document>
#
# The lines of a block ```cpp become the body of a function. What it includes and `using namespace`
# go in front; a block without an include has flashmha.h and iostream.
set -eu

compiler=${1:?"usage: scripts/check_snippets.sh <compiler> <document>"}
document=${2:?"usage: scripts/check_snippets.sh <compiler> <document>"}
include=$(cd "$(dirname "$0")/../include" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# One source file for every block; #line makes errors point into the document.
awk -v out="$scratch" -v document="$document" '
  function finish() {
    if (head !~ /#include/)
      head = "#include <iostream>\n#include \"flashmha/flashmha.h\"\nusing namespace flashmha;\n" head
    file = sprintf("%s/%02d.cpp", out, ++count)
    printf "%svoid snippet() {\n%s}\n", head, body > file
    close(file)
  }
  /^```cpp$/ { inside = 1; head = body = ""; next }
  inside && /^```$/ { inside = 0; finish(); next }
  inside && /^(#include|using namespace) / { head = head $0 "\n"; next }
  inside { body = body sprintf("#line %d \"%s\"\n%s\n", NR, document, $0) }
' "$document"

num_blocks=0
for source in "$scratch"/*.cpp; do
  [ -e "$source" ] || break
  num_blocks=$((num_blocks + 1))
  "$compiler" -std=c++20 -fsyntax-only -Wall -Wextra -Werror -Wno-missing-field-initializers \
    -Wno-unused-variable -Wno-unused-but-set-variable -I"$include" "$source"
done
if [ "$num_blocks" = 0 ]; then
  echo "$document shows no C++: no block \`\`\`cpp" >&2
  exit 1
fi
echo "$document: $num_blocks blocks compile"
