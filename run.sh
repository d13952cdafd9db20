#!/usr/bin/env bash
# Run the default systems on the committed sample jobs, or on one region, slide or stack: ./run.sh [FILE [OUT_DIR]]
set -euo pipefail
here="$(dirname "$(readlink -f "$0")")"
file="${1:+$(readlink -f "$1")}"
out="$(readlink -m "${2:-$here/output/${1:+$(basename "${1%.*}")}}")"
cd "$here"
source ./environment.sh

if [ -n "$file" ]; then
  python -m midog predict "$file" --out "$out" --report
  exit
fi
for job in test/input/track1 test/input/track2; do
  out="$here/output/sample/$(basename "$job")"
  python inference.py --input "$job" --output "$out"
  python -m midog report "$job"/images/*/* "$out"/*.json --out "$out"
done
