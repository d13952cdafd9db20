#!/usr/bin/env bash
# Build an image, prove it by both sample jobs under the platform's flags, and only then write
# export/midog2025.tar.gz (one image, for `docker load` and for upload), export/model.tar.gz (the platform's "Models"
# upload) and their sha256 sums. Arguments are build.sh's: --invoke exports the image that serves.
set -euo pipefail
cd "$(dirname "$0")"
source ./container.sh
image=midog2025
[ "${1:-}" != --invoke ] || image=midog2025-invoke
./build.sh "$@"
mkdir -p export
python3 resources/model_archive.py export/model.tar.gz.part
python3 test/container.py "$engine" "$image" export/model.tar.gz.part
"$engine" save "$image" | gzip -1 > "export/$image.tar.gz.part"
python3 test/upload.py "export/$image.tar.gz.part"
mv export/model.tar.gz.part export/model.tar.gz
mv "export/$image.tar.gz.part" "export/$image.tar.gz"
(cd export && sha256sum "$image.tar.gz" model.tar.gz | tee "$image.sha256")
