#!/usr/bin/env bash
# stage.sh STAMP TITLE COMMAND...: run one stage of a chain and, if it ends well, leave its command in the file STAMP.
set -euo pipefail
stamp=$1 title=$2
shift 2
printf '\n=== %s: %s\n    %s\n' "$(basename "$stamp")" "$title" "$*"
start=$SECONDS
"$@" || { code=$?; printf '=== %s failed (%s)\n' "$(basename "$stamp")" "$code" >&2; exit "$code"; }
mkdir -p "$(dirname "$stamp")"
printf '%s\n' "$*" >"$stamp.new"
mv "$stamp.new" "$stamp"
printf '=== %s done in %s s\n' "$(basename "$stamp")" "$((SECONDS - start))"
