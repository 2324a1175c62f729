# What kill.sh and failing_calls.sh share: a small model, and the commands that write.
program=$(readlink -f "${1:?usage: $(basename "$0") PROGRAM INTERPOSER [COUNT]}")
interposer=$(readlink -f "${2:?the library made of interpose.c}")
count=${3:-1000}
here=$(dirname "$(readlink -f "$0")")
export OMP_WAIT_POLICY=passive OPENBLAS_NUM_THREADS=1
work=$(mktemp -d) && cd "$work" || exit 9
trap 'rm -rf "$work"' EXIT
cat > small.yaml <<'Y'
model:
  stem: {kind: flatten}
  width: 16
  blocks: 1
  mixing: none
  positions: false
  layers: [moe]
  moe: {experts: 4, top_k: 2, hidden: 16}
training: {epochs: 0.1, batch: 64, log_every: 8, evaluate_every: 0.03, evaluate_examples: 64}
Y
train="--data synthetic:narrow --quiet --threads 1"
"$program" pretrain small.yaml $train --out base > /dev/null || exit 9

# run NAME FOLDER [again]: the command NAME into FOLDER; `again` as one goes on after an interruption. A run that was killed
# before its settings were written is started once more: --resume refuses a folder without a run.
run() {
  local more=""
  [ "$3" = again ] && [ -e "$2/config.yaml" ] && more=--resume
  case $1 in
    pretrain) "$program" pretrain small.yaml $train --out "$2" $more ;;
    finetune) "$program" finetune base $train --set training.epochs=0.05 --out "$2" $more ;;
    compress) "$program" compress base $train --set training.epochs=0.05 --rank 2 --out "$2" $more ;;
    sweep) "$program" sweep base $train --methods random --ratios 0.5 --seeds 1 --finetune 0.02 --limit 64 --keep --out "$2" ;;
    compare) "$program" compare small.yaml $train --variants moe,dense --seeds 1 --set training.epochs=0.03 --out "$2" ;;
    prune) "$program" prune base --criterion random --drop 1 --quiet --threads 1 --out "$2" --overwrite ;;
    measure) "$program" measure base $train --limit 64 --out "$2" ;;
    evaluate) "$program" evaluate base $train --limit 64 --trace "$2.h5" ;;
    preview) "$program" data preview synthetic --out "$2.png" --threads 1 ;;
    inspect) "$program" inspect base --json ;;
  esac
}
