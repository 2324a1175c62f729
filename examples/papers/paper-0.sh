#!/usr/bin/env bash
# Chowdhury et al., ICML 2024 (arXiv 2405.16646): the change of a router's norm in finetuning tells which experts matter.
# Pretrains, finetunes by SGD as the paper does (examples/configs/finetune-sgd.yaml), drops experts by three forms of the
# change, at random, by frequency and by importance, before and after a short finetuning, and says which claims show.
# What is done already is not done again.
# usage: examples/papers/paper-0.sh [--quick] OUT [CIFAR10 TINY]
#   --quick  fewer epochs, ratios and draws, and one pretraining on photographs: minutes instead of hours
#   CIFAR10  folder or .tar.gz of the CIFAR-10 binary version; without it synthetic images only
#   TINY     100 classes of Tiny ImageNet at 32 x 32 in the CIFAR-100 binary layout, or CIFAR-100 itself
# SEEDS, those of pretraining, are "1 2 3" unless the environment says otherwise; ESPALIER names a program that is built
# already, and COMMIT what it was built of. OUT gets paper-0.csv (a row a pruned model),
# paper-0-ablation.csv, paper-0.md with tables and verdicts, and the figure paper-0.svg.
set -euo pipefail
quick=
if [ "${1:-}" = --quick ]; then quick=1 && shift; fi
[ $# -ge 1 ] || { sed -n 's/^# usage: /usage: /p' "$0" >&2; exit 2; }
out=$(realpath -m "$1") cifar10=${2:+$(realpath "$2")} tiny=${3:+$(realpath "$3")}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ -z "${ESPALIER:-}" ]; then
  . cmake/setup.sh
  need_packages "${build_packages[@]}" "${example_packages[@]}"
  build_program
  ESPALIER=$PWD/build/release/espalier
fi
seeds=${SEEDS:-1 2 3}
mkdir -p "$out"

if [ "$quick" ]; then
  epochs=2 ratios=0.25,0.5,0.75,0.875 random=1,2,3 lengths="1 4" photograph_seeds=${seeds%% *} cifar_epochs=1 retuned=0 chosen_retuned=0
else
  epochs=5 ratios=0.125,0.25,0.375,0.5,0.625,0.75,0.875 random=1,2,3,4,5 lengths="1 4 16" photograph_seeds=$seeds
  cifar_epochs=3 retuned=0.1 chosen_retuned=0.25
fi

train() { # FOLDER COMMAND...
  [ -f "$1/results.json" ] || "$ESPALIER" "${@:2}" --out "$1" --overwrite --quiet
}

# A row a model, of the columns that the report needs.
rows() { # SETTING PRETRAINING_SEED CELLS.csv
  awk -v setting="$1" -v model="$2" -f examples/statistics.awk -f - "$3" <<'AWK'
    FNR == 1 { read_header($0, at); next }
    { cut_csv($0, field)
      if (field[at["failure"]] == "")
        print setting "," model "," field[at["method"]] "," field[at["mode"]] "," field[at["ratio"]] "," field[at["seed"]] "," \
          field[at["accuracy"]] "," field[at["tuned_accuracy"]] "," field[at["parameters"]] }
AWK
}
header=setting,model,method,mode,ratio,seed,accuracy,tuned_accuracy,parameters

curve() { # SETTING SEED PRETRAINED FINETUNED DATA MODE EPOCHS [OPTION...]
  echo "$1, pretraining seed $2: pruning" >&2
  "$ESPALIER" sweep "$4" --reference "$3" --data "$5" --modes "$6" --ratios "$ratios" --seeds "$random" --finetune "$7" \
    --methods router-norm-change,router-norm-change-absolute,router-difference-norm,random,frequency,importance \
    --calibration 512 --out "$out/$1-$2/curve" --quiet "${@:8}" >/dev/null
  rows "$1" "$2" "$out/$1-$2/curve/cells.csv" >>"$out/paper-0.csv.part"
}

# On compiled-in images: twenty classes, then five of one family.
synthetic() { # SETTING SEED MODE EPOCHS_AFTER_PRUNING [KEY=VALUE...]
  local folder=$out/$1-$2 set=()
  for value in "${@:5}"; do set+=(--set "$value"); done
  train "$folder/pretrained" pretrain examples/configs/quickstart.yaml --data synthetic --seed "$2" \
    --set "training.epochs=$epochs" "${set[@]}"
  train "$folder/finetuned" finetune "$folder/pretrained" --data synthetic:narrow --seed "$2" \
    --config examples/configs/finetune-sgd.yaml
  curve "$1" "$2" "$folder/pretrained" "$folder/finetuned" synthetic:narrow "$3" "$4"
}

# V-MoE's gates and start, two experts a token.
photographs() { # SEED
  local folder=$out/tiny-imagenet-to-cifar10-$1
  train "$folder/pretrained" pretrain examples/configs/sweep.yaml --data "cifar100:$tiny" --seed "$1" \
    --set training.epochs=4 --set model.moe.router.renormalise=false --set model.moe.identical_experts=true
  train "$folder/finetuned" finetune "$folder/pretrained" --data "cifar10:$cifar10" --seed "$1" \
    --config examples/configs/finetune-sgd.yaml --set optimizer.learning_rate=0.05 --set "training.epochs=$cifar_epochs"
  curve tiny-imagenet-to-cifar10 "$1" "$folder/pretrained" "$folder/finetuned" "cifar10:$cifar10" zero "$retuned" --limit 2000
}

# Finetunings that differ in optimiser, decay and length, from the same pretrained models.
ablate() { # SEED OPTIMISER DECAY EPOCHS
  local setting=$2:$3:$4 folder=$out/ablation-$2-$3-$4-$1 rate=0.1 other=()
  if [ "$2" = adamw ]; then rate=0.003 other=(--set optimizer.clip_norm=1); fi
  train "$folder/finetuned" finetune "$out/synthetic-$1/pretrained" --data synthetic:narrow --seed "$1" \
    --set "optimizer.kind=$2" --set "optimizer.learning_rate=$rate" --set "optimizer.weight_decay=$3" \
    --set optimizer.clip_norm=10 --set optimizer.schedule.final_share=0.01 --set "training.epochs=$4" "${other[@]}"
  "$ESPALIER" sweep "$folder/finetuned" --reference "$out/synthetic-$1/pretrained" --data synthetic:narrow --modes zero \
    --methods router-norm-change,router-norm-change-absolute,router-difference-norm,random --ratios 0.25,0.5,0.75 \
    --seeds "$random" --out "$folder/curve" --quiet >/dev/null
  rows "$setting" "$1" "$folder/curve/cells.csv" >>"$out/paper-0-ablation.csv.part"
}

conditions() { # RESULTS.json
  jq -r --arg commit "${COMMIT:-$(git describe --always --dirty)}" --arg date "$(date +%F)" --arg seeds "$seeds" \
    --arg random "$random" --arg quick "${quick:+ --quick}" '
    "Made by `examples/papers/paper-0.sh\($quick)` on \($date) at commit \($commit), pretraining seeds \($seeds)," +
    " seeds of random pruning, calibration and finetuning \($random), \(.threads) thread(s)," +
    " product kernels \(.product_kernel), OpenBLAS kernel \(.blas_kernel)."' "$1"
}

echo "$header" >"$out/paper-0.csv.part"
echo "$header" >"$out/paper-0-ablation.csv.part"
for seed in $seeds; do synthetic synthetic "$seed" zero 0.25; done
for seed in $seeds; do
  synthetic synthetic-expert-choice "$seed" remove "$chosen_retuned" model.moe.router.policy=expert_choice
done
if [ "$tiny" ]; then for seed in $photograph_seeds; do photographs "$seed"; done; fi
for kind in sgd adamw; do
  for decay in 0 0.05; do
    for length in $lengths; do
      echo "ablation: $kind, decay $decay, $length epochs" >&2
      for seed in $seeds; do ablate "$seed" "$kind" "$decay" "$length"; done
    done
  done
done
mv "$out/paper-0.csv.part" "$out/paper-0.csv"
mv "$out/paper-0-ablation.csv.part" "$out/paper-0-ablation.csv"
conditions "$out/synthetic-${seeds%% *}/finetuned/results.json" >"$out/paper-0-conditions.txt"
examples/papers/report-0.sh "$out" >"$out/paper-0.md"
examples/papers/figure-0.sh "$out"
cat "$out/paper-0.md"
