#!/usr/bin/env bash
# Build the container image midog2025 with docker or podman, whichever is there.
set -euo pipefail
cd "$(dirname "$0")"
engine="$(command -v docker || command -v podman)" || {
  echo "error: neither docker nor podman is installed; install one of them" >&2
  exit 1
}
"$engine" build --platform linux/amd64 --tag midog2025 .
