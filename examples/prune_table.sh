#!/usr/bin/env bash
# Prunes one finetuned model by router-norm change and at random (five seeds), evaluates each result on the test split
# before and after a short finetuning, prints the table, and says whether the score beats chance. What is done already is
# not done again.
# usage: prune_table.sh PRETRAINED FINETUNED DATA OUT EPOCHS RATIO...
#   EPOCHS  of the short finetuning after pruning, may be a fraction
#   RATIO   share of the experts of each layer to drop, e.g. 0.25 0.5 0.75
# OUT gets a sweep, whose cells.csv has a row a model. ESPALIER names the program.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
pretrained=$1 finetuned=$2 data=$3 out=$4 epochs=$5
shift 5
ratios=$(IFS=, && echo "$*")

"${ESPALIER:-espalier}" sweep "$finetuned" --reference "$pretrained" --data "$data" --methods router-norm-change,random \
  --modes zero --ratios "$ratios" --seeds 1,2,3,4,5 --finetune "$epochs" --out "$out" >/dev/null

verdict() { # COLUMN CLAIM
  awk -v better=router-norm-change -v than=random -v column="$1" -v claim="$2" -f "$here/statistics.awk" \
    -f "$here/verdict.awk" "$out/cells.csv"
}

awk -f "$here/statistics.awk" -f "$here/prune_table.awk" "$out/cells.csv"
echo
verdict accuracy "pruning by router-norm change is above random pruning"
verdict tuned_accuracy "the same after finetuning $epochs epochs"
