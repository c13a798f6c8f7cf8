#!/bin/sh
# Runs the commands whose output a document shows, and compares: every word must be there, only
# numbers may differ.   scripts/check_readme.sh <program> <document>
#
# A block to check is written
#     <!-- output of: flashmha benchmark --batch-size 2 --seq-length 256 -->
#     ```
#     what the command printed
#     ```
# A line of dots (...) in the block stands for any number of lines left out.
set -eu

program=${1:?"usage: scripts/check_readme.sh <program> <document>"}
document=${2:?"usage: scripts/check_readme.sh <program> <document>"}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# One file with the command and one with its output for every block.
awk -v out="$scratch" '
  /^<!-- output of: flashmha .* -->$/ {
    sub(/^<!-- output of: flashmha /, ""); sub(/ -->$/, "")
    block = sprintf("%s/%02d", out, ++count)
    print > (block ".command")
    wanted = 1
    next
  }
  wanted && /^```/ { wanted = 0; inside = 1; printf "" > (block ".expected"); next }
  inside && /^```/ { inside = 0; next }
  inside { print > (block ".expected") }
' "$document"

# Numbers become #, runs of blanks and of dashes shrink to one: what is left is the shape.
shape() {
  sed -E -e 's/[-+]?[0-9]+([.,][0-9]+)*(e[-+]?[0-9]+)?/#/g' -e 's/-+/-/g' -e 's/[ \t]+/ /g' \
    -e 's/ $//' "$1"
}

num_blocks=0
for command_file in "$scratch"/*.command; do
  [ -e "$command_file" ] || break
  num_blocks=$((num_blocks + 1))
  block=${command_file%.command}
  arguments=$(cat "$command_file")
  # shellcheck disable=SC2086  # the arguments of a command line
  if ! "$program" $arguments >"$block.found" 2>"$block.errors"; then
    echo "flashmha $arguments: failed" >&2
    cat "$block.errors" >&2
    exit 1
  fi
  shape "$block.expected" >"$block.expected_shape"
  shape "$block.found" >"$block.found_shape"
  # Line by line; after "..." the next line of the document is searched for.
  if ! awk '
    NR == FNR { found[++num_found] = $0; next }
    $0 == "..." { skipping = 1; next }
    {
      at++
      while (skipping && at <= num_found && found[at] != $0) at++
      skipping = 0
      if (at > num_found || found[at] != $0) {
        print "the document shows: " $0
        print "the program prints: " (at <= num_found ? found[at] : "nothing more")
        failed = 1
        exit
      }
    }
    END {
      if (!failed && !skipping && at < num_found) {
        print "the document lacks: " found[at + 1]
        failed = 1
      }
      exit failed
    }' "$block.found_shape" "$block.expected_shape" >"$block.difference"; then
    echo "flashmha $arguments: $document is out of date" >&2
    cat "$block.difference" >&2
    exit 1
  fi
  echo "flashmha $arguments: as in the document"
done
if [ "$num_blocks" = 0 ]; then
  echo "$document shows no output: no line '<!-- output of: flashmha ... -->'" >&2
  exit 1
fi
