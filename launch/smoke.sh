#!/usr/bin/env bash
# Sets up the environment, pretrains the smoke config on photographs that come with
# scikit-image, and measures the encoder:
#   bash launch/smoke.sh                             in runs/smoke
#   bash launch/smoke.sh runs/other --config.seed=1  elsewhere, with other settings
# An existing run is resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

workdir="${1:-runs/smoke}"
if [[ $workdir == -* ]]; then
  echo "error: $workdir: the first argument must be the run directory" >&2
  exit 2
fi
bash launch/setup.sh

.venv/bin/python -m simclr_jax.pretrain --config=configs/smoke.py \
  --workdir="$workdir" "${@:2}"
.venv/bin/python -m simclr_jax.evaluate --workdir="$workdir" \
  --protocol=knn,linear --baselines
echo "The run is in $workdir: config.json, metrics.jsonl, checkpoints/, eval/."
