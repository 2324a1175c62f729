#!/usr/bin/env bash
# Prunes one finetuned model by router-norm change and at random, evaluates each result before and after a short
# finetuning, and prints the table. What is done already is not done again.
# usage: prune_table.sh PRETRAINED FINETUNED DATA OUT EPOCHS RATIO...
#   EPOCHS  of the short finetuning after pruning, may be a fraction
#   RATIO   share of the experts of each layer to drop, e.g. 0.25 0.5 0.75
# OUT gets pruning.csv, one row a model, and a folder for each model. Needs jq; ESPALIER names the program.
set -euo pipefail
pretrained=$1 finetuned=$2 data=$3 out=$4 epochs=$5
shift 5
espalier=${ESPALIER:-espalier}
mkdir -p "$out"
csv=$out/pruning.csv

evaluate() { "$espalier" evaluate "$1" --data "$data" --json; }
describe() { "$espalier" inspect "$1" --json; }

row() { # NAME CRITERION RATIO SEED MODEL FINETUNED_MODEL
  local before after model
  before=$(evaluate "$5") after=$(evaluate "$6") model=$(describe "$5")
  jq -rn --arg name "$1" --arg criterion "$2" --arg ratio "$3" --arg seed "$4" --argjson before "$before" \
    --argjson after "$after" --argjson model "$model" '[$name, $criterion, $ratio, $seed, $before.accuracy,
    $after.accuracy, $model.parameters, $model.bytes, $model.flops_per_image, 1000 / $before.images_per_second]
    | @csv' >>"$csv.part"
}

prune() { # NAME CRITERION RATIO SEED [OPTION...]
  local name=$1 criterion=$2 ratio=$3 seed=$4 folder
  shift 4
  folder=$out/$criterion-$ratio-$seed
  [ -f "$folder/pruned/last.h5" ] || "$espalier" prune "$finetuned" --criterion "$criterion" --ratio "$ratio" --seed "$seed" \
    --out "$folder/pruned" --quiet "$@" >/dev/null
  [ -f "$folder/tuned/results.json" ] || "$espalier" finetune "$folder/pruned" --data "$data" --out "$folder/tuned" --quiet \
    --overwrite --seed "$seed" --set "training.epochs=$epochs" --set training.evaluate_every=1000 >/dev/null
  row "$name" "$criterion" "$ratio" "$seed" "$folder/pruned" "$folder/tuned"
}

echo '"model","criterion","ratio","seed","accuracy","accuracy_after_finetuning","parameters","bytes","flops_per_image","milliseconds_per_image"' >"$csv.part"
prune unpruned random 0 1 # drops nothing: the same model without the optimiser's state, for comparison
for ratio in "$@"; do
  echo "pruning $ratio of the experts" >&2
  prune "router-norm-change $ratio" router-norm-change "$ratio" 1 --reference "$pretrained"
  for seed in 1 2 3; do prune "random $ratio" random "$ratio" "$seed"; done
done
mv "$csv.part" "$csv"

# Seeds of one criterion and ratio become one line: mean and half the range.
awk -F, -v epochs="$epochs" '
  NR == 1 { next }
  { gsub(/"/, ""); if (!($1 in n)) order[++models] = $1; n[$1]++;
    sum[$1] += $5; after[$1] += $6; parameters[$1] = $7; bytes[$1] += $8; flops[$1] = $9; ms[$1] += $10
    if (n[$1] == 1 || $5 < low[$1]) low[$1] = $5; if (n[$1] == 1 || $5 > high[$1]) high[$1] = $5
    if (n[$1] == 1 || $6 < alow[$1]) alow[$1] = $6; if (n[$1] == 1 || $6 > ahigh[$1]) ahigh[$1] = $6 }
  function percent(sum, n, low, high) {
    return n > 1 ? sprintf("%6.2f +- %.2f", 100 * sum / n, 50 * (high - low)) : sprintf("%6.2f", 100 * sum / n) }
  END {
    printf "%-26s %5s  %-16s %-22s %10s %8s %9s %8s\n", "model", "seeds", "accuracy %", "finetuned " epochs " epochs", "parameters", "MB", "MFLOP", "ms/image"
    for (i = 1; i <= models; i++) { m = order[i]
      printf "%-26s %5d  %-16s %-22s %10d %8.2f %9.2f %8.3f\n", m, n[m], percent(sum[m], n[m], low[m], high[m]),
        percent(after[m], n[m], alow[m], ahigh[m]), parameters[m], bytes[m] / n[m] / 1e6, flops[m] / 1e6, ms[m] / n[m] } }' "$csv"
