#!/usr/bin/env bash
# Tells which C files are not formatted as .clang-format says, and which of their lines are longer than 120 columns:
# tests/format.sh [--fix]. Debian 12's clang-format (14) decides; other versions break some lines elsewhere. It leaves
# comments and texts as they are, so their lines are counted here, and mended by hand.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. cmake/setup.sh
need_packages "${format_packages[@]}"
mode=(--dry-run -Werror)
if [ "${1:-}" = --fix ]; then mode=(-i); fi
git ls-files -z '*.c' '*.h' | xargs -0 clang-format "${mode[@]}"
if git grep -nE '^.{121,}' -- '*.c' '*.h'; then
  echo "format: these lines are longer than 120 columns" >&2
  exit 1
fi
echo "format: $(git ls-files '*.c' '*.h' | wc -l) files are as .clang-format says"
