#!/usr/bin/env bash
# Runs what README promises for a fresh Debian 12 on fresh ones. Each is a minimal Debian in a folder (debootstrap,
# minbase) with a clone of this checkout's last commit:
#   tests/bare_machine.sh [CASE...]     as root; by default all that have a *
#   * root:quickstart   examples/quickstart.sh, as root on a machine without sudo
#   * user:tests        tests/run.sh, as an ordinary user who may use sudo
#   * user:manual       the manual steps of README, then tests/consumer against what they installed, on a machine that
#                       has no development files of the libraries that Espalier uses
#     user:quickstart, root:tests
# The machines are told nothing but this machine's apt sources, keys, proxies and name servers, which are read anew each
# time. Exit code 1: a case failed; 2: this machine cannot make a bare one, and nothing was tested.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. cmake/setup.sh
export PATH=$PATH:/usr/sbin:/sbin
suite=bookworm
current=
cases=("$@")
if [ $# -eq 0 ]; then cases=(root:quickstart user:tests user:manual); fi

say() { echo "bare machine: $*"; }

cannot() {
  say "$*; so nothing could be tested" >&2
  current=
  exit 2
}

# Waits for a command such that signals reach this script at once, and are handed on.
child=
wait_for() {
  "$@" </dev/null &
  child=$!
  local code=0
  wait "$child" || code=$?
  child=
  return "$code"
}

# A machine's mounts are in a namespace of its own, and end with it however it ends.
isolated() { wait_for unshare --mount --pid --fork --kill-child "$@"; }

clean_up() {
  local code=$?
  trap - EXIT
  if [ -n "$child" ]; then
    # unshare ignores the milder signals; what it has started ends with it.
    kill -KILL "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  rm -rf --one-file-system "$scratch" 2>/dev/null || { sleep 2 && rm -rf --one-file-system "$scratch"; } || true
  if [ "$code" -eq 0 ] || [ -z "$current" ]; then exit "$code"; fi
  say "$current failed after $SECONDS s, with exit code $code" >&2
  exit 1
}

# This machine's package sources: a line of suite, component and address for each.
sources() {
  # shellcheck disable=SC2016 # apt-get fills these in
  local format='$(RELEASE) $(COMPONENT) $(REPO_URI)'
  apt-get indextargets --no-release-info --format "$format" 'Created-By: Packages' 2>/dev/null
}

# What the apt of ROOT is told. Settings that belong to packages of this machine are not taken: a bare one lacks them.
take_apt_settings() { # ROOT
  local root=$1 file scheme
  rm -rf "$root/etc/apt/sources.list" "$root"/var/lib/apt/lists/*
  tar -C /etc/apt --exclude=./apt.conf.d -c . | tar -C "$root/etc/apt" -x
  tar -C /usr/share/keyrings -c . | tar -C "$root/usr/share/keyrings" -x --skip-old-files
  for file in /etc/apt/apt.conf.d/*; do
    dpkg-query --search "$file" >/dev/null 2>&1 || cp -a "$file" "$root/etc/apt/apt.conf.d/"
  done
  for scheme in http https; do
    local proxy=${scheme}_proxy
    if [ -n "${!proxy:-}" ]; then echo "Acquire::$scheme::Proxy \"${!proxy}\";"; fi
  done >"$root/etc/apt/apt.conf.d/99proxies"
  if sources | grep -q ' https:'; then cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"; fi
}

bootstrap() { # ROOT
  local address log=$scratch/bootstrap.log options=(--variant=minbase)
  address=$(sources | awk -v suite="$suite" '$1 == suite && $2 == "main" && !found++ { print $3 }')
  if [ -z "$address" ]; then cannot "no package source of this machine (/etc/apt) has Debian 12, $suite"; fi
  if sources | grep -q ' https:'; then options+=(--include=ca-certificates); fi
  say "making a minimal Debian 12"
  isolated debootstrap "${options[@]}" "$suite" "$1" "$address" >"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    cannot "debootstrap failed, as it says above (offline? a TMPDIR that allows neither devices nor programs?)"
  }
  take_apt_settings "$1"
  cp -L /etc/resolv.conf /etc/hosts "$1/etc/"
}

# in_machine ROOT USER COMMAND: as after logging in there.
in_machine() {
  # shellcheck disable=SC2016 # expanded inside
  isolated bash -ec 'mount -t proc proc "$1/proc"
    mount -t sysfs -o ro sysfs "$1/sys"
    mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
    exec env -i PATH="$PATH" TERM="${TERM:-dumb}" ${OMP_WAIT_POLICY+"OMP_WAIT_POLICY=$OMP_WAIT_POLICY"} \
      chroot "$1" su -l -w OMP_WAIT_POLICY "$2" -c "$3"' - "$@"
}

# A fresh copy of the bootstrap, with a clone of the checkout in the home of WHO.
new_machine() { # ROOT WHO
  local root=$1 home=/root
  cp -a "$scratch/bootstrap" "$root"
  if [ "$2" = user ]; then
    home=/home/user
    in_machine "$root" root "apt-get -q -y update && apt-get -q -y install --no-install-recommends sudo &&
      useradd --create-home --shell /bin/bash user" >"$scratch/user.log" 2>&1 || {
      tail -n 5 "$scratch/user.log" >&2
      cannot "sudo could not be installed in the minimal Debian, as apt-get says above"
    }
    echo "user ALL=(ALL) NOPASSWD: ALL" >"$root/etc/sudoers.d/user"
  fi
  # No hard links: the files get another owner.
  git clone --quiet --no-hardlinks --depth 1 "file://$PWD" "$root$home/espalier"
  chroot "$root" chown -R "${2}:" "$home/espalier"
}

# The indented block of README that begins with apt-get, without the indent.
manual_steps() {
  awk '/^    sudo apt-get/ { inside = 1 } inside && !/^    / { exit } inside { print substr($0, 5) }' README.md
}

# In a machine of its own, what MACHINE has in /usr/local is used by a program.
consume() { # MACHINE
  local root=$scratch/consumer version
  new_machine "$root" root
  cp -a "$1/usr/local/." "$root/usr/local/"
  version=$(sed -n 's/^project(espalier VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
  in_machine "$root" root "set -e; ldconfig; cd espalier; . cmake/setup.sh
    need_packages \"\${runtime_packages[@]}\" \"\${consumer_packages[@]}\"
    tests/consumer/use_installed.sh shared $version gcc"
}

run_case() { # WHO WHAT
  local root=$scratch/machine command
  case $2 in
    quickstart) command=examples/quickstart.sh ;;
    tests) command=tests/run.sh ;;
    manual) command=$(manual_steps) ;;
  esac
  new_machine "$root" "$1"
  if [ "$2" != manual ]; then
    in_machine "$root" "$1" "cd espalier && $command"
  else
    # Nobody is there to say yes.
    echo 'APT::Get::Assume-Yes "true";' >"$root/etc/apt/apt.conf.d/99yes"
    in_machine "$root" "$1" "set -ex; cd espalier; $command"
    consume "$root"
  fi
  rm -rf --one-file-system "$scratch/machine" "$scratch/consumer"
}

for case in "${cases[@]}"; do
  case $case in
    root:quickstart | user:quickstart | root:tests | user:tests | user:manual) ;;
    *) cannot "\"$case\" is no case; the cases are named at the top of $0" ;;
  esac
done
if [ "$(id -u)" -ne 0 ]; then
  cannot "making a Debian in a folder needs root, and this is $(id -un); run it as root, or sudo $0"
fi
need_packages "${bare_machine_packages[@]}" || cannot "making a Debian in a folder needs ${bare_machine_packages[*]}"
unshare --mount --pid --fork true ||
  cannot "no namespaces for mounts and processes are to be had here (a container without rights?)"
if ! git diff --quiet HEAD; then say "what is not committed is not part of this"; fi
if ! manual_steps | grep -q cmake; then
  say "README.md has no manual steps: an indented block from sudo apt-get on" >&2
  exit 1
fi

scratch=$(mktemp -d "${TMPDIR:-/tmp}/espalier_bare_machine_XXXXXX")
chmod 755 "$scratch"
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

SECONDS=0
bootstrap "$scratch/bootstrap"
say "made, $SECONDS s"
for current in "${cases[@]}"; do
  say "$current"
  SECONDS=0
  run_case "${current%:*}" "${current#*:}"
  say "$current is good, $SECONDS s"
done
