#!/usr/bin/env bash
# Run the default system on the committed sample job, or on one stack: ./run.sh [FILE [OUT_DIR]]
set -euo pipefail
here="$(dirname "$(readlink -f "$0")")"
file="${1:+$(readlink -f "$1")}"
out="$(readlink -m "${2:-$here/output/${1:+$(basename "${1%.*}")}}")"
cd "$here"
source ./environment.sh

if [ -z "$file" ]; then
  out="$here/output/sample"
  python inference.py --input test/input/track2 --output "$out"
  python -m midog report test/input/track2/images/*/*.tif "$out/multiple-mitotic-figure-classification.json" --out "$out"
else
  python -m midog predict "$file" --out "$out"
fi
