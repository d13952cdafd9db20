#!/usr/bin/env bash
# Build the image midog2025 with docker or podman, whichever is there; with --invoke midog2025-invoke, the one that serves.
# Further arguments are the engine's: ./build.sh --invoke --build-arg TRACK=2
set -euo pipefail
cd "$(dirname "$0")"
source ./container.sh
target=exec image=midog2025
if [ "${1:-}" = --invoke ]; then
  target=invoke image=midog2025-invoke
  shift
fi
"$engine" build --platform linux/amd64 --target "$target" --tag "$image" "$@" .
