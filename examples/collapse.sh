#!/usr/bin/env bash
# Provokes a router into collapse, by a fast router without a balance loss, so that the alarm for unused experts goes
# off; then trains the same model with the balance loss, which cures it.
# usage: collapse.sh DATA OUT
# OUT gets a folder for each run, with routing.csv and alarms.csv. ESPALIER names the program.
set -euo pipefail
data=$1 out=$2
espalier=${ESPALIER:-espalier}
config=$(dirname "$0")/configs/router-comparison.yaml
mkdir -p "$out"

train() { # NAME BALANCE_WEIGHT
  "$espalier" pretrain "$config" --data "$data" --out "$out/$1" --overwrite --set training.epochs=0.6 \
    --set training.evaluate_every=0.1 --set training.evaluate_examples=1000 --set optimizer.router_rate=10 \
    --set model.moe.router.balance_weight="$2" 2>"$out/$1.log" >/dev/null || { cat "$out/$1.log" >&2; exit 1; }
  grep -E '^(alarm|epoch)' "$out/$1.log"
}

report() { # NAME: of the last evaluation, each layer's smallest and largest share
  awk -F, 'NR > 1 { if ($1 != step) delete low; step = $1
      if (!($3 in low) || $8 < low[$3]) low[$3] = $8; if (!($3 in low) || $8 > high[$3, step]) high[$3, step] = $8 }
    END { for (layer in low) printf "  %s: experts serve between %.2f and %.2f %% of the slots\n", layer, 100 * low[layer],
      100 * high[layer, step] }' "$out/$1/routing.csv" | sort
}

echo "Without a balance loss:"
train collapsed 0
report collapsed
echo "With model.moe.router.balance_weight=0.05:"
train cured 0.05
report cured
