#!/bin/bash
# usage: failing_calls.sh PROGRAM INTERPOSER [COUNT]
# Lets one call fail in each of COUNT runs, spread over the commands, the kinds of call, the ways to fail, and the calls themselves.
# The program ends with 0 or 1, in time, and says what was wrong; what can be tried again (EINTR, short reads and writes) is; every
# file is whole, what was there before is there.
. "$(dirname "$(readlink -f "$0")")/common.sh"
commands=(pretrain finetune prune measure evaluate preview inspect)
ways=(malloc:12 write:5 write:28 write:4 write:short read:5 read:4 read:short fsync:5 fsync:4 open:24 open:4 rename:5 rename:28 close:5 close:4)
share=$((count / ${#commands[@]} / ${#ways[@]}))
[ $share -lt 1 ] && share=1
bad=0 runs=0 passed=0 clean=0
complain() { echo "BAD $*"; bad=$((bad + 1)); }

try() { # NAME CALL WAY N
  local code faults
  rm -rf target target.h5 target.png
  [ "$1" = prune ] && cp -r kept target
  TORTURE_CALLS=$2 TORTURE_AT=$4 TORTURE_DO=$3 LD_PRELOAD=$interposer timeout -s KILL 60 "$SHELL" -c "$(declare -f run); program=$program train='$train'; run $1 target" > out 2> err
  code=$?
  runs=$((runs + 1))
  case $code in
    0) passed=$((passed + 1)) ;;
    1) clean=$((clean + 1)); grep -q '^espalier: .' err || complain "$1, $2 $4 ($3): no message" ;;
    *) complain "$1, $2 $4 ($3): exit code $code: $(tail -1 err)" ;;
  esac
  case $3 in 4 | short) [ $code = 0 ] || complain "$1, $2 $4 ($3): not tried again: $(tail -1 err)" ;; esac
  grep -qE 'damaged|\(null\)' err && [ "$2" = malloc ] && complain "$1, $2 $4 ($3): short of memory is called $(tail -1 err)"
  [ -d target ] && { faults=$(/usr/bin/python3 "$here/check_run.py" "$program" target) || complain "$1, $2 $4 ($3): $faults"; }
  [ "$1" = prune ] && [ $code = 1 ] && ! cmp -s kept/last.h5 target/last.h5 && [ ! -s target/last.h5 ] && complain "prune: the old one is lost"
}

SHELL=/bin/bash
run prune kept > /dev/null 2>&1 || exit 9
for name in "${commands[@]}"; do
  for way in "${ways[@]}"; do
    call=${way%:*}
    rm -rf target target.h5 target.png count
    TORTURE_CALLS=$call TORTURE_COUNT=$work/count LD_PRELOAD=$interposer run "$name" target > /dev/null 2>&1
    calls=$(cat count)
    [ "$calls" -gt 0 ] || continue
    tries=$((share < calls ? share : calls))
    for ((i = 1; i <= tries; i++)); do try "$name" "$call" "${way#*:}" $((tries == 1 ? calls / 2 + 1 : 1 + (i - 1) * (calls - 1) / (tries - 1))); done
  done
  echo "$name: $runs runs so far, $passed succeeded all the same, $clean ended with 1 and a message, $bad faults"
done
echo "$runs failing calls: $passed runs succeeded all the same, $clean ended with exit code 1 and a message, $bad faults"
[ $bad = 0 ]
