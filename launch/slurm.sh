#!/usr/bin/env bash
#SBATCH --job-name=fcclip --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --signal=TERM@120 --requeue
# Trains on several nodes with GPUs, one process a node: sbatch launch/slurm.sh WORKDIR [FLAGS OF fcclip_jax.main]
# Slurm tells the processes about each other. Asked to stop, the run saves; requeued, it goes on.
set -euo pipefail
workdir=$1
shift
srun "${PYTHON:-.venv/bin/python}" -m fcclip_jax.main --config=configs/coco.py --distributed --workdir="$workdir" "$@"
