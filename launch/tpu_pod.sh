#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU pod slice; run it again to go on after a preemption.
#   launch/tpu_pod.sh TPU_NAME ZONE gs://BUCKET/RUN [FLAGS OF fcclip_jax.main]
# The checkout must be at ~/fcclip-jax on every host, and data and weights where the configuration says.
set -euo pipefail
name=$1 zone=$2 workdir=$3
shift 3
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "
    cd ~/fcclip-jax
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet '.[train]' 'jax[tpu]' 'etils[epath-gcs]' google-cloud-storage
    .venv/bin/python -m fcclip_jax.main --config=configs/coco.py --config.deform_attn_precision=bfloat16 \
        --distributed --workdir=$workdir $*"
