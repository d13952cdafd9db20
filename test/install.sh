#!/usr/bin/env bash
# Install the package into an empty environment outside the checkout, and use it: first without an engine, then with one
# (some 4 GB of downloads). Not a part of ./test.sh.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cp -r "$root" "$work/source"
rm -rf "$work/source/.venv" "$work/source/.git"
python3 -m venv "$work/env"
cd "$work"
region="$(ls "$root"/test/input/track1/images/*/*)"

env/bin/pip install --quiet --disable-pip-version-check "$work/source"
du -sh env | sed 's/\t.*/ on disk without an engine/'
env/bin/midog --version
env/bin/midog report "$region" "$root/test/expected/track1/mitotic-figures.json" --out report
env/bin/midog predict "$region" --out predicted && exit 1 || echo "refused, as it should be"

env/bin/pip install --quiet --disable-pip-version-check "$work/source[torch]"
du -sh env | sed 's/\t.*/ on disk with torch/'
rm -rf source
env/bin/midog systems
env/bin/midog predict "$region" --out predicted --report
env/bin/python "$root/test/compare.py" "$root/test/expected/track1" predicted/*/
env/bin/python -c "
import midog, numpy
found = midog.load(track=1).predict('$region')
print('from Python:', len(found), 'candidates,', midog.__file__.split('/')[-3])
print(midog.load('efficientnet_lite0').classify(numpy.zeros((2, 128, 128, 3), numpy.uint8)))
"
