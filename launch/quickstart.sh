#!/usr/bin/env bash
# Segments six pictures of the miniature world on a fresh machine: creates a virtual environment, installs the project and runs it.
#   launch/quickstart.sh [--train] [OUTPUT_FOLDER]      (default: out/quickstart)
# Uses the trained model inside the package. --train first trains one from scratch instead, a CLIP and then FC-CLIP's head,
# much shorter than the package's, in about ten minutes on two cores; repeat the command to resume.
# Requires Python 3.11 or newer.
# VENV names the virtual environment (default: .venv), PYTHON the interpreter that creates it (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
train=
if [ "${1:-}" = --train ]; then train=yes; shift; fi
output=${1:-out/quickstart}
venv=${VENV:-.venv}
pictures=fcclip_jax/world/pictures

echo "Installing the project into $venv, which takes a minute or more..."
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade pip
"$venv/bin/python" -m pip install --quiet ".${train:+[train]}"

weights=world
if [ "$train" ]; then
    "$venv/bin/python" -m fcclip_jax.main --config=configs/world_clip.py --workdir="$output/clip" \
        --config.steps=1000 --config.data.first_steps=700 --config.average=0.99 --config.eval.every=0
    "$venv/bin/python" -m fcclip_jax.main --config=configs/world.py --config.init="$output/clip/final" --workdir="$output/head" \
        --config.steps=400 --config.optim.milestones="(356,385)" --config.average=0.99 --config.eval.every=0
    weights=$output/head/final
fi

# Everything that the pictures show, and as many words that they do not show.
things="mailbox, butterfly, saw, doughnut, sunglasses, basketball, crescent moon, skull, rainbow, abacus, fire engine, socks,
    skateboard, tractor, sunflower, candle, strawberry, coconut, octopus, taco, pumpkin, dartboard, feather, jeans, pig, scarf,
    cocktail, locomotive, duck, cat, koala, guitar, cactus, lemon, ambulance, church, saxophone, axe, bed, robot, key, snail,
    rocket, umbrella, penguin, tulip, cheese, drum, helicopter, kangaroo, trophy, zebra, broccoli, whale, tent, anchor"
stuff="grass, sand, sea, sky, brick wall, wooden floor, snow, night sky"
"$venv/bin/fcclip" segment "$pictures" --classes "$things, $stuff" --stuff "$stuff" --weights "$weights" --output "$output" \
    --overwrite  # the results of the other model

unseen=$(echo "$things, $stuff" | tr , '\n' | sed 's/^ *//' | sort |
    comm -12 - <("$venv/bin/fcclip" vocabularies world | sed -n 's/  .*unseen$//p' | sort) | paste -sd , -)
echo "The segments are drawn in $output/overlays. No mask in training showed these of the words: ${unseen//,/, }."
echo "To go on: source $venv/bin/activate, then fcclip segment --help. With your photographs, see Official weights in README.md."
