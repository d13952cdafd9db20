#!/usr/bin/env bash
# Installs the package into an empty environment outside the checkout and uses it there, without PyTorch and with it.
# PyTorch and what comes with it are 4 GB, so they are taken from .venv; midog and `pip install .` are the real ones.
set -euo pipefail
cd "$(dirname "$0")/.."
source ./environment.sh
checkout="$PWD"
image="$(echo "$checkout"/test/input/track1/images/*/*)"
result="$checkout/test/expected/track1/mitotic-figures.json"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

mkdir "$work/source"
cp -r midog resources model pyproject.toml requirements.txt README.md LICENSE "$work/source"
python -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "$work/source"
rm -r "$work/source"
cd "$work"
source venv/bin/activate

midog report "$image" "$result" --out report
test -s report/report.html
echo "without PyTorch: a report is made"
if midog predict "$image" --out nothing 2> message; then
  echo "error: predict ran without PyTorch" >&2
  exit 1
fi
grep --quiet "pip install 'midog\[torch\]'" message
echo "without PyTorch: $(cat message)"

site="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
"$checkout/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/engine.pth"
midog systems
midog predict "$image" --out predicted --report
python - "$image" "$checkout" <<'END'
import sys

import midog

assert not midog.__file__.startswith(sys.argv[2] + "/midog"), midog.__file__
found = midog.load(track=1).predict(sys.argv[1])
print(f"{midog.__file__}: {found.accepted.sum()} mitotic figures")
END
midog train rtmdet --help > help
grep --quiet -- --validation help
echo "installed: predict, report, the call from Python and the trainings work"
