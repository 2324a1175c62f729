#!/usr/bin/env bash
# Installs the build into a scratch folder and uses it as others do: the program, and the library through pkg-config and
# through the CMake package, each shared and static.
#   tests/consumer/run.sh BUILD LIBDIR VERSION COMPILER [FLAG...]   (flags that the build had, such as -fsanitize=...)
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$1 libdir=$2 version=$3 compiler=$4
shift 4
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

# Nothing of the build tree may be needed, so the installed tree is moved after installing.
cmake --install "$build" --prefix "$scratch/first" >/dev/null
mv "$scratch/first" "$scratch/installed"
export LD_LIBRARY_PATH="$scratch/installed/$libdir" PKG_CONFIG_PATH="$scratch/installed/$libdir/pkgconfig"

printed=$("$scratch/installed/bin/espalier" --version)
case $printed in
*"$version"*) echo "good: espalier --version" ;;
*)
  echo "espalier --version printed \"$printed\"; expected the version $version" >&2
  exit 1
  ;;
esac

read -r -a cflags <<<"$(pkg-config --cflags espalier)"
read -r -a shared_libs <<<"$(pkg-config --libs espalier)"
# The whole archive, so that every library that it needs must have been named.
static=$(pkg-config --static --libs espalier)
read -r -a static_libs <<<"${static/-lespalier/-Wl,--whole-archive -l:libespalier.a -Wl,--no-whole-archive}"
"$compiler" "${flags[@]}" "${cflags[@]}" "$source/consumer.c" -o "$scratch/shared" "${shared_libs[@]}"
expect "$scratch/shared"
"$compiler" "${flags[@]}" "${cflags[@]}" "$source/consumer.c" -o "$scratch/static" "${static_libs[@]}"
expect env -u LD_LIBRARY_PATH "$scratch/static"
expect pkg-config --modversion espalier

cmake -G Ninja -S "$source" -B "$scratch/build" -DCMAKE_C_COMPILER="$compiler" -DCMAKE_C_FLAGS="${flags[*]}" \
  -DCMAKE_PREFIX_PATH="$scratch/installed" >/dev/null
cmake --build "$scratch/build" >/dev/null
expect "$scratch/build/consumer_shared"
expect "$scratch/build/consumer_static"
