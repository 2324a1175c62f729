#!/usr/bin/env bash
# Tells which C files are not formatted as .clang-format says: tests/format.sh [--fix]
# Debian 12's clang-format (14) decides; other versions break some lines elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. cmake/setup.sh
need_packages "${format_packages[@]}"
mode=(--dry-run -Werror)
if [ "${1:-}" = --fix ]; then mode=(-i); fi
git ls-files -z '*.c' '*.h' | xargs -0 clang-format "${mode[@]}"
echo "format: $(git ls-files '*.c' '*.h' | wc -l) files are as .clang-format says"
