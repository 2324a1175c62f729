#!/usr/bin/env bash
# Debian packages: which are needed, and installing those that are missing. Needs neither root nor network when
# nothing is missing. Either source it and call need_packages or build_program, or run it:
#   bash cmake/setup.sh PACKAGE...

# shellcheck disable=SC2034 # used by those that source this file
build_packages=(gcc libc6-dev cmake ninja-build pkgconf libopenblas-dev libhdf5-dev zlib1g-dev libpng-dev
  libcyaml-dev libyaml-dev libjansson-dev)
# shellcheck disable=SC2034
test_packages=(libcmocka-dev python3 python3-h5py python3-numpy dataset-fashion-mnist gnuplot-nox
  procps)
# shellcheck disable=SC2034
example_packages=(jq gnuplot-nox)
clang_packages=(clang libclang-rt-dev libomp-dev)
format_packages=(clang-format git)
bare_machine_packages=(debootstrap gpgv debian-archive-keyring git)
# What the installed program and shared library load, and what a program that uses the library is built with.
# shellcheck disable=SC2034
runtime_packages=(libopenblas0 libhdf5-103-1 zlib1g libpng16-16 libcyaml1 libyaml-0-2 libjansson4 libgomp1)
# shellcheck disable=SC2034
consumer_packages=(gcc libc6-dev pkgconf cmake ninja-build)

is_installed() {
  dpkg-query --show --showformat='${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

apt() {
  local -a as_root=()
  if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

# need_packages PACKAGE...: returns 1, after saying why on standard error, if some cannot be had.
need_packages() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "set-up: this is not a Debian-like system, so these packages are taken to be there in some form: $*" >&2
    return 0
  fi
  local -a missing=()
  local package
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ]; then return 0; fi
  echo "set-up: missing Debian packages, to be installed now: ${missing[*]}" >&2
  if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
    echo "set-up: installing needs root or sudo, and there is neither; ask for: apt-get install ${missing[*]}" >&2
    return 1
  fi
  # The lists of a fresh machine are empty, those of an old one name files that are gone.
  apt-cache show "${missing[@]}" >/dev/null 2>&1 || apt update >&2 || return 1
  if ! apt install --no-install-recommends "${missing[@]}" >&2; then
    { apt update && apt install --no-install-recommends "${missing[@]}"; } >&2 || {
      echo "set-up: these could not be installed: ${missing[*]}; see apt-get's messages above" >&2
      return 1
    }
  fi
}

# build_program: build/release/espalier from the checkout that is the current folder, without asking for what only the
# tests need. The preset turns them on again when it is configured the next time.
build_program() {
  cmake --preset release -DESPALIER_TESTS=OFF -DESPALIER_EXAMPLES=OFF >/dev/null
  cmake --build --preset release --target espalier
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then need_packages "$@"; fi
