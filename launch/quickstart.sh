#!/usr/bin/env bash
# Segments a photograph on a fresh machine: creates a virtual environment, installs the project and runs it.
#   launch/quickstart.sh [OUTPUT_FOLDER]      (default: out/quickstart)
# Requires Python 3.11 or newer. The photograph comes with scikit-image; the model is small and its weights are random.
# VENV names the virtual environment (default: .venv), PYTHON the interpreter that creates it (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-out/quickstart}
venv=${VENV:-.venv}

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade pip
"$venv/bin/python" -m pip install --quiet . scikit-image

photo=$("$venv/bin/python" -c "import pathlib, skimage; print(pathlib.Path(skimage.__file__).parent / 'data' / 'astronaut.png')")
"$venv/bin/fcclip" segment "$photo" --classes "astronaut|woman, space shuttle|rocket, flag, helmet, wall" --stuff wall \
    --weights random --short-side 320 --max-side 544 --overlap-threshold 0 --threshold 0 --output "$output"
