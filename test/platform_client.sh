#!/usr/bin/env bash
# Ask an exec and an invoke process as the platform does: by its public client, in an environment of its own, with an S3
# on 127.0.0.1 (200 MB of downloads, half an hour). Not a part of ./test.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
client_python="$(for each in $(type -ap python3.12 python3 python); do
  "$each" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2> /dev/null && echo "$each" && break
done)" || {
  echo "error: no Python 3.12 is on the PATH, which sagemaker-shim needs; install one" >&2
  exit 1
}
source ./environment.sh
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$client_python" -m venv "$work/env"
for each in sagemaker-shim==0.8.3 'moto[server]==5.2.5'; do  # together they send pip on a search without an end
  "$work/env/bin/pip" install --quiet --disable-pip-version-check "$each"
done
"$work/env/bin/python" test/platform_client.py "$(command -v python)" "$work"
