#!/usr/bin/env bash
# Builds Espalier and runs its tests: tests/run.sh [PRESET [CTEST ARGUMENT...]], for example
#   tests/run.sh                   all tests of the release build
#   tests/run.sh asan -L short     the short ones under AddressSanitizer
# PRESET is one of CMakePresets.json: release (default), native, debug, asan, tsan, coverage.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=${1:-release}
shift || true

. cmake/setup.sh
packages=("${build_packages[@]}" "${test_packages[@]}")
if [ "$preset" = tsan ]; then packages+=("${clang_packages[@]}"); fi
need_packages "${packages[@]}"

cmake --preset "$preset"
cmake --build --preset "$preset"
ctest --test-dir "build/$preset" --output-on-failure --no-tests=error "$@"
