# Sourced by the scripts: makes .venv when it is missing or older than its requirements, and activates it.
python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || {
  echo "error: $(python3 --version) is on the PATH; install Python 3.11 or 3.12" >&2
  exit 1
}
if ! cmp -s requirements.lock .venv/requirements.lock; then
  python3 -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
  cp requirements.lock .venv/requirements.lock
fi
source .venv/bin/activate
