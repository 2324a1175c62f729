#!/usr/bin/env bash
# The figure of paper 0: accuracy over the number of experts dropped of eight, a row of panels a setting, before and after
# finetuning; random pruning as a band of one standard deviation. Writes paper-0.gp and its data, and paper-0.svg where
# gnuplot is installed.
# usage: figure-0.sh FOLDER     (with paper-0.csv)
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
cd_to=$(realpath "$1")

awk -f "$here/../statistics.awk" -f - "$1/paper-0.csv" >"$1/paper-0-means.csv" <<'AWK'
  FNR == 1 { read_header($0, at); print "setting,column,method,dropped,mean,deviation"; next }
  { cut_csv($0, field)
    add("accuracy")
    add("tuned_accuracy") }

  function add(column,    value, key) {
    value = field[at[column]]
    if (value == "") return
    key = field[at["setting"]] "," column "," field[at["method"]] "," 8 * field[at["ratio"]]
    if (!(key in n)) order[++keys] = key
    n[key]++
    sum[key] += 100 * value
    squares[key] += 100 * value * 100 * value
  }

  END {
    for (i = 1; i <= keys; i++)
      printf "%s,%.4f,%.4f\n", order[i], sum[order[i]] / n[order[i]], deviation(n[order[i]], sum[order[i]], squares[order[i]])
  }
AWK

{
  panels=$(awk -F, 'NR > 1 { print $1 "," $2 }' "$1/paper-0-means.csv" | sort -u)
  rows=$(printf '%s\n' "$panels" | cut -d, -f1 | sort -u | wc -l)
  cat <<GP
set terminal svg size 1000,$((rows * 330)) font "sans,11" background "white"
set output "paper-0.svg"
set datafile separator ","
set multiplot layout $rows,2
set key left bottom Left reverse samplen 1.5 width -4
set xrange [0:7.2]
set xlabel "experts dropped of 8"
set ylabel "test accuracy %"
set yrange [*:100.5]
GP
  for setting in $(printf '%s\n' "$panels" | cut -d, -f1 | sort -u); do
    for column in accuracy tuned_accuracy; do
      if ! printf '%s\n' "$panels" | grep -qx "$setting,$column"; then
        echo "set multiplot next"
        continue
      fi
      title=$([ "$column" = accuracy ] && echo "before finetuning" || echo "after a short finetuning")
      of() { echo "\"< awk -F, '\$1 == \\\"$setting\\\" && \$2 == \\\"$column\\\" && \$3 == \\\"$1\\\"' paper-0-means.csv\""; }
      whole=$(awk -F, -v s="$setting" -v c="$column" '$1 == s && $2 == c && $3 == "unpruned" { print $5 }' "$1/paper-0-means.csv")
      echo "set title \"$setting, $title\""
      echo "plot $(of random) using 4:(\$5-\$6):(\$5+\$6) with filledcurves fillcolor \"#cccccc\" title \"random +- deviation\", \\"
      echo "  $whole with lines dashtype 2 linecolor \"#888888\" title \"unpruned\", \\"
      colour=1
      for method in router-norm-change router-norm-change-absolute router-difference-norm frequency importance; do
        end=', \'
        [ $method = importance ] && end=
        echo "  $(of $method) using 4:5 with linespoints linewidth 2 linetype $((colour++)) title \"$method\"$end"
      done
    done
  done
  echo "unset multiplot"
} >"$1/paper-0.gp"
if command -v gnuplot >/dev/null; then (cd "$cd_to" && gnuplot paper-0.gp); fi
