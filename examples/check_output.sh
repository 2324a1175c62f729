#!/usr/bin/env bash
# Compares what an example prints on standard output with the comment "/* Output:" at the end of its source.
# usage: check_output.sh PROGRAM SOURCE [POINTS]
#   POINTS  how far a figure that stands before " %" may be from the one in the source (default 0): the last bits of a
#           training depend on the kind of processor
set -euo pipefail
expected=$(sed -n '/^\/\* Output:$/,/^\*\/$/p' "$2" | sed '1d;$d')
printed=$("$1")
paste -d '\n' <(printf '%s\n' "$printed" | grep -oE '[0-9.]+ %') <(printf '%s\n' "$expected" | grep -oE '[0-9.]+ %') |
  awk -v points="${3:-0}" 'NR % 2 { figure = $1; next }
    $1 - figure > points || figure - $1 > points { printf "%s %% is more than %g points from %s %%\n", figure, points, $1; far = 1 }
    END { exit far }'
words() { sed -E 's/[0-9.]+ %/PERCENT/g'; }
diff <(printf '%s\n' "$expected" | words) <(printf '%s\n' "$printed" | words)
