#!/usr/bin/env bash
# Lint and tests; with --container also the image, built and run under the platform's hardest flags.
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh

ruff check .
ruff format --check .
mypy
pytest
[ "${1:-}" = "--container" ] || exit 0

source ./container.sh
./build.sh
mkdir -p output
for job in test/input/*/; do
  name="$(basename "$job")"
  result="$(mktemp -d output/container-XXXXXX)"
  chmod 777 "$result"
  started="$(date +%s.%N)"
  "$engine" run --rm --network none --read-only --tmpfs /tmp --cap-drop all \
    --security-opt no-new-privileges --pids-limit 128 --memory 8g \
    --volume "$PWD/$job":/input:ro --volume "$PWD/$result":/output midog2025
  echo "container job $name: $(awk "BEGIN {print $(date +%s.%N) - $started}") s"
  python test/compare.py "test/expected/$name" "$result"
done
