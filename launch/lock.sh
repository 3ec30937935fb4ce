#!/usr/bin/env bash
# Compile the two hand-kept requirement files into exact locks.
set -euo pipefail
plain=(--strip-extras --no-header --no-annotate)
new=$(mktemp)
trap 'rm -f "$new"' EXIT

pip-compile -q "${plain[@]}" --allow-unsafe --no-emit-find-links --no-emit-index-url --no-emit-trusted-host \
  requirements.in -o "$new"
{
  echo '# The exact lock of requirements.in, written by "make lock". A CPU and a CUDA build of torch share this version;'
  echo '# the CUDA build brings its own exactly pinned nvidia packages.'
  sed -E 's/^(torch==[^+]*)\+cpu/\1/' "$new"
} >requirements.txt

# uv resolves from metadata alone: this environment is for machines with CUDA, and need not install here
uv pip compile -q "${plain[@]}" --prerelease disallow --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  requirements-eval.in -o "$new"
{
  echo '# The exact lock of requirements-eval.in, written by "make lock".'
  cat "$new"
} >requirements-eval.txt
