#!/usr/bin/env bash
# Compares what a lesson prints with the comment "/* Output:" at the end of its source.
# usage: check_output.sh PROGRAM SOURCE
set -euo pipefail
expected=$(sed -n '/^\/\* Output:$/,/^\*\/$/p' "$2" | sed '1d;$d')
diff <(printf '%s\n' "$expected") <("$1")
