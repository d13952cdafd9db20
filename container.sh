# Sourced by the scripts: $engine is docker or podman, whichever is there.
engine="$(command -v docker || command -v podman)" || {
  echo "error: neither docker nor podman is installed; install one of them" >&2
  exit 1
}
