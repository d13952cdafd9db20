#!/usr/bin/env bash
# Lint and tests; with --container also both images, built and run under the platform's hardest flags.
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh

ruff check .
ruff format --check .
mypy & types=$!
OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile  # a core each
wait "$types"
[ "${1:-}" = "--container" ] || exit 0

source ./container.sh
models="$(mktemp)"
trap 'rm -f "$models"' EXIT
python3 resources/model_archive.py "$models"
for mode in "" --invoke; do
  ./build.sh $mode
  python3 test/container.py "$engine" "midog2025${mode/-/}" "$models"
done
