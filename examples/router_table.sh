#!/usr/bin/env bash
# Trains the same small model with each router, at equal activated FLOPs of the experts and an equal budget, with several
# seeds, and prints the table: accuracy, load imbalance, dead experts. What is done already is not done again.
# usage: router_table.sh DATA OUT EPOCHS SEED...
# OUT gets routers.csv, one row a run, and a folder for each run. Needs jq; ESPALIER names the program.
set -euo pipefail
data=$1 out=$2 epochs=$3
shift 3
espalier=${ESPALIER:-espalier}
config=$(dirname "$0")/configs/router-comparison.yaml
mkdir -p "$out"
csv=$out/routers.csv

# A router's settings, on top of the config's. All compute 128 neurons a token.
settings() {
  local router=model.moe.router
  case $1 in
    dense) echo "model.layers=[dense]" ;;
    "token choice k=1") echo "$router.noise=1" ;;
    "token choice k=2") echo "model.moe.top_k=2 model.moe.hidden=64 $router.noise=1 $router.renormalise=true" ;;
    "expert choice") echo "$router.policy=expert_choice" ;;
    "soft moe") echo "$router.policy=soft" ;;
    "aux-loss-free k=1") echo "$router.score=sigmoid $router.bias_rate=0.001 $router.balance_weight=0" ;;
  esac
}

run() { # ROUTER SEED
  local folder="$out/${1// /-}-$2" set=()
  for setting in $(settings "$1"); do set+=(--set "$setting"); done
  [ -f "$folder/results.json" ] || "$espalier" pretrain "$config" --data "$data" --out "$folder" --seed "$2" --quiet \
    --overwrite --set "training.epochs=$epochs" --set training.evaluate_every=1000 "${set[@]}" >/dev/null
  if [ ! -f "$folder/measured.json" ]; then
    "$espalier" measure "$folder" --data "$data" --json --quiet >"$folder/measured.json.part"
    mv "$folder/measured.json.part" "$folder/measured.json"
  fi
  jq -rn --arg router "$1" --arg seed "$2" --slurpfile m "$folder/measured.json" --slurpfile r "$folder/results.json" '
    $m[0] as $m | [$router, $seed, $m.accuracy, $m.parameters, $m.activated_parameters, $m.flops_per_image,
      ([$m.layers[].imbalance] | max // 1), ([$m.layers[].dead_experts] | add // 0), $r[0].images_per_second] | @csv' \
    >>"$csv.part"
}

echo '"router","seed","accuracy","parameters","activated_parameters","flops_per_image","imbalance","dead_experts","images_per_second"' >"$csv.part"
for seed in "$@"; do
  for router in dense "token choice k=1" "token choice k=2" "expert choice" "soft moe" "aux-loss-free k=1"; do
    echo "$router, seed $seed" >&2
    run "$router" "$seed"
  done
done
mv "$csv.part" "$csv"

# Seeds of one router become one line: mean and half the range.
awk -F, '
  NR == 1 { next }
  { gsub(/"/, ""); if (!($1 in n)) order[++routers] = $1; n[$1]++
    sum[$1] += $3; parameters[$1] = $4; activated[$1] = $5; flops[$1] = $6; imbalance[$1] += $7; dead[$1] += $8; rate[$1] += $9
    if (n[$1] == 1 || $3 < low[$1]) low[$1] = $3; if (n[$1] == 1 || $3 > high[$1]) high[$1] = $3 }
  END {
    printf "%-18s %5s  %-16s %10s %9s %7s %9s %12s %8s\n", "router", "seeds", "accuracy %", "parameters", "activated",
      "MFLOP", "imbalance", "dead experts", "images/s"
    for (i = 1; i <= routers; i++) { r = order[i]
      printf "%-18s %5d  %6.2f +- %-6.2f %10d %9d %7.2f %9.2f %12.2f %8.0f\n", r, n[r], 100 * sum[r] / n[r],
        50 * (high[r] - low[r]), parameters[r], activated[r], flops[r] / 1e6, imbalance[r] / n[r], dead[r] / n[r], rate[r] / n[r] } }' "$csv"
