#!/bin/sh
# Espalier and its PyTorch peer (bench/peer.py), in turns, in one environment.
#   bench/peer.sh [--keep-openblas] [PYTHON] [--repeats N] [--quick] [--json]
# PYTHON is one that has PyTorch, Debian's python3-torch or a newer one; python3 unless given. The program is
# $ESPALIER, or build/release/espalier. OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are unset for both sides, so that OpenBLAS
# chooses what suits the processor; with --keep-openblas they stay as they are.
set -eu
here=$(dirname "$0")
espalier=${ESPALIER:-$here/../build/release/espalier}

if [ "${1-}" = --keep-openblas ]; then
  shift
else
  unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
fi
python=python3
case ${1-} in
  '' | --*) ;;
  *) python=$1 && shift ;;
esac
if ! [ -x "$espalier" ]; then
  echo "peer.sh: there is no $espalier; build the release preset, or set ESPALIER" >&2
  exit 2
fi
if ! "$python" -c 'import torch' 2>/dev/null; then
  echo "peer.sh: $python has no torch; install python3-torch, or name a Python that has it" >&2
  exit 2
fi
exec "$python" "$here/peer_compare.py" --espalier "$espalier" --python "$python" "$@"
