#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU pod slice. To resume after a preemption, run it again.
#   launch/tpu_pod.sh TPU_NAME ZONE gs://BUCKET/RUN [FLAGS OF fcclip_jax.main]
# Every host needs the checkout at ~/fcclip-jax, and data and weights at the configuration's paths.
set -euo pipefail
name=$1 zone=$2 workdir=$3
shift 3
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "
    cd ~/fcclip-jax
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet '.[train]' 'jax[tpu]' 'etils[epath-gcs]' google-cloud-storage
    .venv/bin/python -m fcclip_jax.main --config=configs/coco.py --config.deform_attn_precision=bfloat16 \
        --distributed --workdir=$workdir $*"
