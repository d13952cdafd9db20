#!/usr/bin/env bash
# Install the package into an empty environment outside the checkout, and use it: first without an engine, then with
# PyTorch (some 4 GB of downloads), then, in another one, with OpenVINO and what the first exported. Not a part of ./test.sh.
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
env/bin/midog systems
env/bin/midog predict "$region" --out predicted --report --precision float32
env/bin/python "$root/test/compare.py" "$root/test/expected/track1" predicted/*/
env/bin/python -c "
import midog, numpy
found = midog.load(track=1).predict('$region')
print('from Python:', len(found), 'candidates,', midog.__file__.split('/')[-3])
print(midog.load('efficientnet_lite0').classify(numpy.zeros((2, 128, 128, 3), numpy.uint8)))
"

env/bin/pip install --quiet --disable-pip-version-check "$work/source[openvino]"
env/bin/midog export-openvino --out exported --system centernet_two_stages efficientnet_lite0
python3 -m venv small
small/bin/pip install --quiet --disable-pip-version-check "$work/source[openvino]" -C weights="$work/exported"
du -sh small | sed 's/\t.*/ on disk with openvino/'
rm -rf source exported
small/bin/midog systems
small/bin/midog predict "$region" --out read --report --precision float32
small/bin/python "$root/test/compare.py" "$root/test/expected/track1" read/*/
