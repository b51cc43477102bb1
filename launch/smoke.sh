#!/usr/bin/env bash
# Sets up the environment, pretrains the smoke config on photographs that come with
# scikit-image, and measures the encoder. The first argument names the run directory;
# an existing one is gone on with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh

workdir="${1:-runs/smoke}"
.venv/bin/python -m simclr_jax.pretrain --config=configs/smoke.py --workdir="$workdir"
.venv/bin/python -m simclr_jax.evaluate --workdir="$workdir" \
  --protocol=knn,linear --baselines
echo "The run is in $workdir: config.json, metrics.jsonl, checkpoints/, eval/."
