#!/bin/bash
# usage: kill.sh PROGRAM INTERPOSER [COUNT]
# Kills the commands that write COUNT times in all: at every write, fsync, rename and open in turn (or as many of them,
# evenly spread, as COUNT allows) and at random moments. After each: every file is whole. Then the command is run again: its checkpoints
# are those of an undisturbed run bit for bit, and no row stands twice.
. "$(dirname "$(readlink -f "$0")")/common.sh"
commands=(pretrain finetune compress sweep compare prune)
share=$((count / ${#commands[@]}))
bad=0 kills=0
complain() { echo "BAD $*"; bad=$((bad + 1)); }

# The checkpoints of a folder and their contents.
checkpoints() { /usr/bin/python3 "$here/contents.py" "$1"; }

check() { # NAME WHAT: after a kill
  local faults
  kills=$((kills + 1))
  [ -d killed ] && { faults=$(/usr/bin/python3 "$here/check_run.py" "$program" killed) || complain "$1, $2: $faults"; }
  run "$1" killed again > out 2>&1 || complain "$1, $2: it does not go on: $(tail -1 out)"
  faults=$(/usr/bin/python3 "$here/check_run.py" "$program" killed --ended) || complain "$1, $2, gone on: $faults"
  [ "$(checkpoints killed)" = "$expected" ] || complain "$1, $2: other checkpoints than of an undisturbed run"
  rm -rf killed
}

for name in "${commands[@]}"; do
  rm -rf whole killed
  mkdir -p whole
  TORTURE_CALLS=write,fsync,rename,open TORTURE_COUNT=$work/count LD_PRELOAD=$interposer run "$name" whole > /dev/null 2>&1
  calls=$(cat count)
  start=$(date +%s%N)
  rm -rf whole && run "$name" whole > /dev/null 2>&1 || complain "$name does not run"
  milliseconds=$((($(date +%s%N) - start) / 1000000))
  expected=$(checkpoints whole)
  at_calls=$((share * 4 / 5)) at_moments=$((share - share * 4 / 5))
  [ $at_calls -gt $calls ] && at_calls=$calls
  for ((i = 1; i <= at_calls; i++)); do
    n=$((i * calls / at_calls))
    TORTURE_CALLS=write,fsync,rename,open TORTURE_AT=$n TORTURE_DO=kill LD_PRELOAD=$interposer run "$name" killed > /dev/null 2>&1
    check "$name" "killed at call $n of $calls"
  done
  for ((i = 0; i < at_moments; i++)); do
    moment=$((RANDOM * milliseconds / 32768))
    (run "$name" killed > /dev/null 2>&1) & shell=$!
    sleep "$(printf '%d.%03d' $((moment / 1000)) $((moment % 1000)))"
    pkill -KILL -P $shell; wait $shell 2> /dev/null
    check "$name" "killed after $moment ms"
  done 2> /dev/null
  echo "$name: $calls calls, $at_calls kills at calls, $at_moments at random moments; $bad faults so far"
done
echo "$kills kills, $bad faults"
[ $bad = 0 ]
