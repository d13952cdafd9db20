#!/usr/bin/env bash
# Build, then write export/midog2025.tar.gz (one image, for `docker load` and for upload),
# export/model.tar.gz (the platform's "Models" upload) and their sha256 sums.
set -euo pipefail
cd "$(dirname "$0")"
./build.sh
source ./container.sh
mkdir -p export
"$engine" save midog2025 | gzip -1 > export/midog2025.tar.gz.part
mv export/midog2025.tar.gz.part export/midog2025.tar.gz
tar --create --gzip --file export/model.tar.gz --directory model .
(cd export && sha256sum midog2025.tar.gz model.tar.gz | tee sha256sums)
