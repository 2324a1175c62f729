#!/usr/bin/env bash
# Uses an Espalier that is installed where shell, linker, pkg-config and CMake find it: the program, and the library
# through pkg-config and through the CMake package.
#   tests/consumer/use_installed.sh shared|both VERSION COMPILER [FLAG...]
# The shared library alone needs no development files of what Espalier uses; the static one, part of both, does.
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
libraries=$1 version=$2 compiler=$3
shift 3
flags=("$@")
scratch=$(mktemp -d "${TMPDIR:-/tmp}/espalier_consumer_XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# expect COMMAND...: it must print the version and nothing else.
expect() {
  local printed
  printed=$("$@")
  if [ "$printed" != "$version" ]; then
    echo "$* printed \"$printed\"; expected \"$version\"" >&2
    exit 1
  fi
  echo "good: ${*/#$scratch\//}"
}

printed=$(espalier --version)
case $printed in
*"$version"*) echo "good: espalier --version" ;;
*)
  echo "espalier --version printed \"$printed\"; expected the version $version" >&2
  exit 1
  ;;
esac

expect pkg-config --modversion espalier
read -r -a cflags <<<"$(pkg-config --cflags espalier)"
read -r -a shared_libs <<<"$(pkg-config --libs espalier)"
"$compiler" "${flags[@]}" "${cflags[@]}" "$source/consumer.c" -o "$scratch/shared" "${shared_libs[@]}"
expect "$scratch/shared"
if [ "$libraries" = both ]; then
  # The whole archive, so that every library that it needs must have been named.
  static=$(pkg-config --static --libs espalier)
  read -r -a static_libs <<<"${static/-lespalier/-Wl,--whole-archive -l:libespalier.a -Wl,--no-whole-archive}"
  "$compiler" "${flags[@]}" "${cflags[@]}" "$source/consumer.c" -o "$scratch/static" "${static_libs[@]}"
  expect env -u LD_LIBRARY_PATH "$scratch/static"
fi

static=OFF
if [ "$libraries" = both ]; then static=ON; fi
cmake -G Ninja -S "$source" -B "$scratch/build" -DCMAKE_C_COMPILER="$compiler" -DCMAKE_C_FLAGS="${flags[*]}" \
  -DSTATIC="$static" >/dev/null
cmake --build "$scratch/build" >/dev/null
expect "$scratch/build/consumer_shared"
if [ "$libraries" = both ]; then expect "$scratch/build/consumer_static"; fi
