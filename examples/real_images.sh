#!/usr/bin/env bash
# The figures of docs/results.md: Fashion-MNIST and CIFAR-10 from scratch; Tiny ImageNet's 100 classes, finetuned on
# CIFAR-10, then pruned. About an hour and a quarter on two cores. What is done already is not done again.
# usage: examples/real_images.sh CIFAR10 TINY OUT
#   CIFAR10  folder or .tar.gz of the CIFAR-10 binary version
#   TINY     100 classes of Tiny ImageNet at 32 x 32 in the CIFAR-100 binary layout, or CIFAR-100 itself
set -euo pipefail
cifar10=$(realpath "$1") tiny=$(realpath "$2") out=$3
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. cmake/setup.sh
need_packages "${build_packages[@]}" "${example_packages[@]}" dataset-fashion-mnist
build_program
export ESPALIER=$PWD/build/release/espalier

train() { # RUN COMMAND...
  [ -f "$out/$1/results.json" ] || "$ESPALIER" "${@:2}" --out "$out/$1" --overwrite
  local text='"\($run): \(.accuracy * 10000 | round / 100) % in \(.seconds | round) s, \(.threads) threads, '
  jq -r --arg run "$1" "$text"'\(.product_kernel) and \(.blas_kernel)"' "$out/$1/results.json"
}

train fashion-mnist pretrain examples/configs/fashion-mnist.yaml --data fashion-mnist
train cifar10 pretrain examples/configs/cifar10.yaml --data "cifar10:$cifar10"
train tiny pretrain examples/configs/tiny-imagenet.yaml --data "cifar100:$tiny"
train tiny-cifar10 finetune "$out/tiny" --data "cifar10:$cifar10" --set training.epochs=2 --set optimizer.learning_rate=0.001
"$ESPALIER" measure "$out/tiny-cifar10" --data "cifar10:$cifar10" --reference "$out/tiny"
examples/prune_table.sh "$out/tiny" "$out/tiny-cifar10" "cifar10:$cifar10" "$out/pruned" 0.2 0.25 0.5 0.75
