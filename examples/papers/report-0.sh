#!/usr/bin/env bash
# The report on paper 0 in Markdown, from what paper-0.sh kept: tables, and a verdict for each claim. It computes nothing
# that the CSV files do not hold.
# usage: report-0.sh FOLDER     (with paper-0.csv, paper-0-ablation.csv and paper-0-conditions.txt)
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
curves=$1/paper-0.csv ablation=$1/paper-0-ablation.csv

verdict() { # CSV SETTING [NAME=VALUE...]
  local csv=$1 setting=$2 set=()
  shift 2
  for value in "$@"; do set+=(-v "$value"); done
  awk -v setting="$setting" "${set[@]}" -f "$here/../statistics.awk" -f "$here/../verdict.awk" "$csv"
}

curve_table() { awk -v setting="$1" -v column="$2" -v experts=8 -f "$here/../statistics.awk" -f "$here/curves.awk" "$curves"; }

settings() { awk -F, 'NR > 1 && !($1 in seen) { seen[$1]; print $1 }' "$1"; }

is_tuned() { awk -F, -v s="$1" '$1 == s && $8 != "" { found = 1 } END { exit !found }' "$curves"; }

claims() { # SETTING
  local change=better=router-norm-change
  verdict "$curves" "$1" $change than=random claim="norm change above random, before finetuning"
  if is_tuned "$1"; then
    verdict "$curves" "$1" $change than=random column=tuned_accuracy claim="norm change above random, after finetuning"
  fi
  verdict "$curves" "$1" $change than=frequency claim="norm change above frequency"
  verdict "$curves" "$1" $change than=importance claim="norm change above importance"
  verdict "$curves" "$1" $change than=importance least=0.75 claim="norm change above importance with 6 of 8 and more dropped"
  verdict "$curves" "$1" $change than=router-norm-change-absolute claim="the signed change above the absolute one"
  verdict "$curves" "$1" $change than=router-difference-norm claim="the change of the norm above the norm of the change"
  verdict "$curves" "$1" $change than=unpruned most=0.5 margin=1 \
    claim="up to 4 of 8 dropped by norm change cost less than a point"
  if is_tuned "$1"; then
    verdict "$curves" "$1" $change than=router-norm-change column=tuned_accuracy than_column=accuracy \
      claim="finetuning after pruning brings accuracy back"
  fi
}

ablation_rows() {
  local setting
  echo '| optimiser | decay | epochs | unpruned % | norm change - random, points | absolute change - random | norm of change - random |'
  echo '| --- | --- | --- | --- | --- | --- | --- |'
  for setting in $(settings "$ablation"); do
    local parts=()
    IFS=: read -ra parts <<<"$setting"
    local whole
    whole=$(awk -F, -v s="$setting" '$1 == s && $3 == "unpruned" { sum += 100 * $7; n++ } END { printf "%.1f", sum / n }' "$ablation")
    echo "| ${parts[0]} | ${parts[1]} | ${parts[2]} | $whole | $(difference "$setting" router-norm-change) |" \
      "$(difference "$setting" router-norm-change-absolute) | $(difference "$setting" router-difference-norm) |"
  done
}

difference() { verdict "$ablation" "$1" better="$2" than=random short=1; }

cat "$1/paper-0-conditions.txt"
for setting in $(settings "$curves"); do
  printf '\n### %s\n\nTest accuracy %% before finetuning:\n\n' "$setting"
  curve_table "$setting" accuracy
  if is_tuned "$setting"; then
    printf '\nAfter a short finetuning:\n\n'
    curve_table "$setting" tuned_accuracy
  fi
  printf '\nThe claims, each over all the ratios that it speaks of:\n\n```text\n'
  claims "$setting"
  printf '```\n'
done
printf '\n### When the score works: optimiser, decay and length of the finetuning\n\n'
printf 'Synthetic images, points above random pruning before finetuning, mean over 2, 4 and 6 of 8 dropped, with its 95 %% interval:\n\n'
ablation_rows
