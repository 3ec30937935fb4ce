#!/usr/bin/env bash
# wheelhouse.sh PYTHON CUDA: collect in wheelhouse/ what a machine without a network needs to install this repository.
# It must be a machine like this one (Linux, architecture, glibc no older). PYTHON: 3.12 or 3.13, or such a Python's
# path. CUDA: 13, as in the lock, 3 GB; or none, where the machine has a torch of its own. flash-attention is built where
# nvcc is, for the GPUs that ARCH names (90: Hopper; none: not at all, as it takes hours on a few cores).
set -euo pipefail
cuda=$2 out=wheelhouse arch=${ARCH:-90}
for python in "$1" "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1"*/bin/python ''; do
  "$python" -c '' 2>/dev/null && break
done
[[ $python ]] || { echo "no Python $1 here; name one by its path: PYTHON=/path/to/python3.12" >&2; exit 1; }
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[[ $cuda == 13 || $cuda == none ]] || { echo "CUDA=$cuda: the lock has CUDA 13; give 13, or none" >&2; exit 1; }
[[ ! -e $out ]] || { echo "$out is there already; remove it, or move it away" >&2; exit 1; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --disable-pip-version-check --quiet)
mkdir -p "$folder/out/wheels"
skip='^$'
[[ $cuda == 13 ]] || skip='^(torch==|triton==|cuda-|nvidia-(cu|nccl|nvj|nvs|nvt))'
grep -vE "$skip" requirements.txt >"$folder/out/requirements.txt"
# DeepSpeed's own kernels are compiled at first use, where they are used
DS_BUILD_OPS=0 "${pip[@]}" wheel --no-deps --wheel-dir "$folder/out/wheels" -r "$folder/out/requirements.txt"
if command -v nvcc >/dev/null && [[ $cuda == 13 && $arch != none ]]; then
  "${pip[@]}" install --no-index --no-deps --find-links "$folder/out/wheels" -r "$folder/out/requirements.txt"
  FLASH_ATTN_CUDA_ARCHS=$arch "${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$folder/out/wheels" \
    "$(grep '^flash-attn==' requirements-gpu.txt)"
  grep '^flash-attn==' requirements-gpu.txt >>"$folder/out/requirements.txt"
else
  echo "flash-attention is not in it: ARCH=none, no nvcc here, or no torch to build against; recipes for GPUs need it" >&2
fi
git archive --format=tar.gz -o "$folder/out/hermes3-recipes.tar.gz" \
  --add-virtual-file="COMMIT:$(git describe --always --abbrev=7 '--exclude=*' HEAD)" HEAD
site=$([[ $cuda == none ]] && echo --system-site-packages || true)
cat >"$folder/out/install.sh" <<END
#!/usr/bin/env bash
# install.sh FOLDER: unpack the repository into FOLDER and install it in FOLDER/.venv, from the files beside this alone.
# PYTHON: the Python $version to use, if it is not python$version.
set -euo pipefail
here=\$(cd "\$(dirname "\$0")" && pwd)
mkdir -p "\$1"
tar xzf "\$here/hermes3-recipes.tar.gz" -C "\$1"
"\${PYTHON:-python$version}" -m venv $site "\$1/.venv"
pip=("\$1/.venv/bin/pip" --disable-pip-version-check --quiet install --no-index --no-deps)
"\${pip[@]}" --find-links "\$here/wheels" -r "\$here/requirements.txt"
"\${pip[@]}" --no-build-isolation -e "\$1"
END
mv "$folder/out" "$out"
echo "$out: $(du -sh "$out" | cut -f1); copy it to the machine, and run there: bash $out/install.sh FOLDER"
