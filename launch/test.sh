#!/usr/bin/env bash
# Runs all tests on a fresh machine: makes a virtual environment, installs everything that they need, runs them.
#   launch/test.sh [PYTEST_ARGUMENTS]
# PyTorch and OpenCLIP are what the results are compared with; TORCH names another build of them.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv-test}

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade pip
# shellcheck disable=SC2086 # several words
"$venv/bin/python" -m pip install --quiet ${TORCH:-torch==2.14.1 torchvision==0.29.1}
"$venv/bin/python" -m pip install --quiet --editable '.[test]'

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
# Most of the time goes into compiling, which uses one core: two processes, each with whole files.
"$venv/bin/python" -m pytest -n 2 --dist loadfile "$@"
