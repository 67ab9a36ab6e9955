#!/usr/bin/env bash
#SBATCH --job-name=fcclip --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --signal=TERM@120 --requeue
# Trains on several nodes with GPUs, with one process per node.
#   sbatch launch/slurm.sh WORKDIR [FLAGS OF fcclip_jax.main]
# The processes find each other through Slurm. At the end of its time, Slurm sends SIGTERM: the run saves, is requeued and
# resumes. PYTHON names the interpreter (default: .venv/bin/python).
set -euo pipefail
workdir=$1
shift
srun "${PYTHON:-.venv/bin/python}" -m fcclip_jax.main --config=configs/coco.py --distributed --workdir="$workdir" "$@"
