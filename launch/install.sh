#!/usr/bin/env bash
# install.sh FOLDER LOCK: make the virtual environment FOLDER, and install LOCK and this project into it with uv.
# PYTHON: the interpreter, if launch/python.sh is not to look for one. TORCH_INDEX: a wheel index with a CPU build of
# torch for this Python, e.g. https://download.pytorch.org/whl/cpu; the lock's CUDA packages (3 GB) are then left out.
set -euo pipefail
folder=$1 lock=$2

python=$(bash "$(dirname "$0")/python.sh")
"$python" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check uv
export VIRTUAL_ENV=$PWD/$folder
uv=$folder/bin/uv
if [[ -n ${TORCH_INDEX:-} ]]; then
  torch=$(grep -oE '^torch==[^ ;]+' "$lock" | head -n 1)
  "$uv" pip install --default-index "$TORCH_INDEX" --no-deps "$torch"
  # what torch itself needs of CUDA is not in its CPU build
  grep -vE '^(cuda-|nvidia-(cu|nccl|nvj|nvs|nvt))' "$lock" >"$folder/requirements.txt"
  lock=$folder/requirements.txt
fi
"$uv" pip install --compile-bytecode -r "$lock"  # as pip does: else each import of torch or Axolotl compiles again
"$uv" pip install --no-deps -e .
