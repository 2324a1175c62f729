#!/usr/bin/env bash
# The main job, on images that are compiled in: pretrain a mixture of experts on a broad task, finetune it on a narrow
# one, measure how far its routers moved, prune it, and compare. Needs nothing but this checkout.
# usage: examples/quickstart.sh [OUT]     (default: runs/quickstart)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-runs/quickstart}

. cmake/setup.sh
need_packages "${build_packages[@]}" "${example_packages[@]}"
build_program
export ESPALIER=$PWD/build/release/espalier

rm -rf "$out"
"$ESPALIER" pretrain examples/configs/quickstart.yaml --data synthetic --out "$out/pretrained"
"$ESPALIER" finetune "$out/pretrained" --data synthetic:narrow --out "$out/finetuned" \
  --config examples/configs/finetune-sgd.yaml
"$ESPALIER" measure "$out/finetuned" --data synthetic:narrow --reference "$out/pretrained"
echo
bash examples/prune_table.sh "$out/pretrained" "$out/finetuned" synthetic:narrow "$out/pruned" 0.25 0.25 0.5 0.75
echo
echo "Everything is in $out: config.yaml, metrics.csv, results.json and checkpoints of each run, finetuned/measured/*.csv, pruned/cells.csv"
