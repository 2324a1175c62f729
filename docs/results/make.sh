#!/usr/bin/env bash
# Makes anew what docs/*.md have between the lines "<!-- made by: COMMAND -->" and "<!-- end -->": tables and verdicts,
# which the command prints from CSV files of docs/results. It runs in the root of the repository.
# usage: docs/results/make.sh [--check]     (--check: changes nothing, and fails where a text is not what its command prints)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
check=${1:-}
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
wrong=0

remake() { # FILE: its text with the parts made anew, to standard output
  local line command inside=
  while IFS= read -r line; do
    case $line in
      '<!-- made by: '*' -->')
        command=${line#<!-- made by: } command=${command% -->}
        printf '%s\n\n' "$line"
        bash -c "$command"
        echo
        inside=1
        ;;
      '<!-- end -->') inside= && printf '%s\n' "$line" ;;
      *) [ "$inside" ] || printf '%s\n' "$line" ;;
    esac
  done <"$1"
}

for file in docs/*.md; do
  grep -q '^<!-- made by: ' "$file" || continue
  remake "$file" >"$made/text"
  if cmp -s "$made/text" "$file"; then continue; fi
  if [ "$check" = --check ]; then
    diff "$file" "$made/text" >&2 || wrong=1
    echo "$file is not what its commands print; run docs/results/make.sh" >&2
  else
    cat "$made/text" >"$file"
    echo "$file"
  fi
done
exit "$wrong"
