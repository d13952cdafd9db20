# Sourced by the scripts: makes .venv when it is missing or older than its requirements, and activates it.
python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || {
  echo "error: $(python3 --version) is on the PATH; install Python 3.11 or 3.12" >&2
  exit 1
}
if ! cmp -s requirements.txt .venv/requirements.txt; then
  python3 -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
  # Ultralytics pulls the OpenCV that needs GUI libraries; both write the same files.
  .venv/bin/pip uninstall --quiet --yes opencv-python opencv-python-headless
  .venv/bin/pip install --quiet --disable-pip-version-check --no-deps "$(grep -o '^opencv-python-headless==[^ ]*' requirements.txt)"
  cp requirements.txt .venv/requirements.txt
fi
source .venv/bin/activate
