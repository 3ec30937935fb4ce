#!/usr/bin/env bash
# Compile the hand-kept requirement files into exact locks, from metadata alone: nothing is installed.
# requirements.txt holds for the platforms of tool.uv in pyproject.toml (a GH200 is aarch64, many laptops are Macs); the
# other two are for Linux on x86-64, with CUDA.
set -euo pipefail

new=$(mktemp)
trap 'rm -f "$new"' EXIT
everywhere=" ; platform_machine == 'arm64' and sys_platform == 'darwin' or"
everywhere+=" (platform_machine == 'aarch64' or platform_machine == 'x86_64') and sys_platform == 'linux'"

lock() { # lock NAME OPTION...: NAME.in -> NAME.txt
  local name=$1
  shift
  uv pip compile --quiet --python-version 3.12 --strip-extras --no-header --no-annotate --upgrade "$@" "$name.in" -o "$new"
  {
    echo "# The exact lock of $name.in, written by \"make lock\"."
    sed "s/$everywhere\$//" "$new"
  } >"$name.txt"
}

lock requirements --universal
lock requirements-eval --python-platform x86_64-manylinux_2_28
lock requirements-quantize --python-platform x86_64-manylinux_2_28
