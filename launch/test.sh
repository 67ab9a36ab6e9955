#!/usr/bin/env bash
# Runs all checks and tests on a fresh machine: creates a virtual environment, installs all requirements and runs them.
#   launch/test.sh [PYTEST_ARGUMENTS]
# The results are compared with PyTorch and OpenCLIP; TORCH names another build of PyTorch, as arguments of pip install.
# VENV names the virtual environment (default: .venv-test), PYTHON the interpreter that creates it (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv-test}

echo "Installing the project, PyTorch and the compilers into $venv, which takes minutes and several GB..."
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade pip
# shellcheck disable=SC2086 # several words
"$venv/bin/python" -m pip install --quiet ${TORCH:-torch==2.14.1 torchvision==0.29.1}
"$venv/bin/python" -m pip install --quiet --editable '.[test]'

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
# Most of the time is compilation, which uses one core: two processes run whole files each.
"$venv/bin/python" -m pytest -n 2 --dist loadfile "$@"
