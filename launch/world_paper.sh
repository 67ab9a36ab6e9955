#!/usr/bin/env bash
# Repeats the paper's experiments on the miniature world, and writes fcclip_jax/evaluation/MINIATURE.md.
#   launch/world_paper.sh FOLDER SEED...        such as launch/world_paper.sh runs/paper 0 1 2
# Trains for each seed, in FOLDER/SEED: a CLIP, a rival with a vision transformer, FC-CLIP on the frozen CLIP, and FC-CLIP with a
# trained trunk; then evaluates them. The same command resumes what was stopped and repeats nothing that is finished.
# PYTHON names the interpreter (default: python).
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
shift
python=${PYTHON:-python}

train() { # NAME CONFIG FLAG...
    [ -d "$run/$1/final" ] || "$python" -m fcclip_jax.main --workdir="$run/$1" --config="configs/$2" "${@:3}"
}

evaluate() { # NAME CHECKPOINT FLAG...
    [ -f "$run/eval/$1/report.json" ] || "$python" -m fcclip_jax.main --workdir="$run/eval/$1" --config=configs/eval.py:world \
        --checkpoint="$run/$2/final" "${@:3}"
}

for seed in "$@"; do
    run=$folder/$seed
    # Seed 500 makes the held-out scenes that judge a CLIP.
    train clip world_clip.py --config.seed="$((1000 + seed))"
    train vit world_clip.py:vit --config.seed="$((1000 + seed))"
    train frozen world.py --config.seed="$seed" --config.init="$run/clip/final"
    train trainable world.py:trainable_clip --config.seed="$seed" --config.init="$run/clip/final"

    evaluate scores frozen                                                                              # tables 1, 4 and 6
    evaluate kept_back frozen --config.world.designs=kept_back                                          # table 1
    evaluate ensemble_kept_back frozen --config.sweep=ensemble --config.world.designs=kept_back         # table 8
    evaluate classifiers trainable --config.sweep=classifiers --config.second_checkpoint="$run/frozen/final"      # table 6
    evaluate grounding frozen --config.grounding                                                                  # table 7
    evaluate ensemble frozen --config.sweep=ensemble                                                              # table 8
    evaluate resolution frozen --config.sweep=resolution --config.second_checkpoint="$run/vit/final"              # table 9
done

"$python" -m fcclip_jax.evaluation.clusters --checkpoint "$run/clip/final" "$run/vit/final" --scene 0 \
    --agreement 40 --output "$folder/clusters.png" # figure 1
"$python" -m fcclip_jax.evaluation.miniature --runs "${@/#/$folder/}" --commit "$(git rev-parse --short HEAD)" \
    --output fcclip_jax/evaluation/MINIATURE.md
