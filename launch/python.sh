#!/usr/bin/env bash
# python.sh: print the path of a Python that fits the lock (3.12 or 3.13), and say on stderr which one it is.
# In turn: $PYTHON, python3.12 and python3.13 on the PATH, python3, pyenv's versions, uv's. If there is none, uv brings one.
set -euo pipefail
fits='import sys; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))'
where='import sys; print(sys.executable)'

try() { # a shim of pyenv is on the PATH even where its version is not switched on, so each candidate is run
  local path
  "$1" -c "$fits" 2>/dev/null && path=$("$1" -c "$where" 2>/dev/null) || return 1
  echo "Python: $path" >&2
  echo "$path"
  exit 0
}

if [[ -n ${PYTHON:-} ]]; then
  try "$PYTHON" || { echo "PYTHON=$PYTHON is not Python 3.12 or 3.13; name another, or leave PYTHON unset" >&2; exit 1; }
fi
for name in python3.12 python3.13 python3; do
  try "$name" || true
done
for path in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[23]*/bin/python; do
  try "$path" || true
done
for uv in uv "$HOME/.local/bin/uv"; do
  command -v "$uv" >/dev/null || continue
  for version in 3.12 3.13; do
    try "$("$uv" python find --no-python-downloads "$version" 2>/dev/null || echo none)" || true
  done
  "$uv" python install 3.12 >&2 && try "$("$uv" python find 3.12)" || true
done
echo 'No Python 3.12 or 3.13 here. Install one (Ubuntu 24.04: apt install python3.12-venv; elsewhere: pip install uv,' \
  'which fetches it), or name it: make PYTHON=/path/to/python3.12' >&2
exit 1
