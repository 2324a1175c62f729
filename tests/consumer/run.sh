#!/usr/bin/env bash
# Installs the build into a scratch folder and uses it as others do: the program, and the library through pkg-config and
# through the CMake package, each shared and static.
#   tests/consumer/run.sh BUILD LIBDIR VERSION COMPILER [FLAG...]   (flags that the build had, such as -fsanitize=...)
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$1 libdir=$2
shift 2
scratch=$(mktemp -d "${TMPDIR:-/tmp}/espalier_consumer_XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# Nothing of the build tree may be needed, so the installed tree is moved after installing.
cmake --install "$build" --prefix "$scratch/first" >/dev/null
mv "$scratch/first" "$scratch/installed"
export LD_LIBRARY_PATH="$scratch/installed/$libdir" PKG_CONFIG_PATH="$scratch/installed/$libdir/pkgconfig"
export CMAKE_PREFIX_PATH="$scratch/installed" PATH="$scratch/installed/bin:$PATH"

printed=$(command -v espalier)
if [ "$printed" != "$scratch/installed/bin/espalier" ]; then
  echo "espalier was not installed into bin: \"$printed\" is found instead" >&2
  exit 1
fi
"$source/use_installed.sh" both "$@"
