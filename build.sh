#!/usr/bin/env bash
# Build the container image midog2025 with docker or podman, whichever is there.
set -euo pipefail
cd "$(dirname "$0")"
source ./container.sh
"$engine" build --platform linux/amd64 --tag midog2025 .
