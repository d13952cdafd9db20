#!/usr/bin/env bash
# Run the default systems on the committed sample jobs, or on an image or a folder of images, with reports.
set -euo pipefail
usage="usage: ./run.sh                                  both sample jobs, into output/sample
       ./run.sh [--] FILE [OUT_DIR] [OPTION ...]    a region, slide, stack or crop, or a folder, into output/NAME

OPTION is any of midog predict's:
"
from="$PWD"
here="$(dirname "$(readlink -f "$0")")"
cd "$here"
source ./environment.sh

case "${1-none}" in
  none)
    for job in test/input/track1 test/input/track2; do
      out="$here/output/sample/$(basename "$job")"
      python inference.py --input "$job" --output "$out"
      python -m midog report "$job"/images/*/* "$out"/*.json --out "$out"
    done
    exit ;;
  -h | --help)
    printf '%s\n' "$usage"
    exec python -m midog predict --help ;;
  --) shift ;;
  -*)
    echo "error: $1 stands where FILE is expected; a FILE that begins with - stands behind --" >&2
    exit 2 ;;
esac

cd "$from"
file="$(realpath -ms -- "${1:?FILE is missing}")"
if [ -d "$file" ]; then
  file="$(readlink -f -- "$file")"
fi
name="$(basename -- "$file")"
[ -d "$file" ] || name="${name%.*}"
shift
out="$here/output/$name"
if [[ "${1--}" != -* ]]; then
  out="$1"
  shift
fi
PYTHONPATH="$here" exec python -P -m midog predict "$file" --out "$out" --report "$@"
