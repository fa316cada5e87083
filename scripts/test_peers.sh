#!/usr/bin/env bash
# Tests against other stacks, in an environment of their own: bash scripts/test_peers.sh [PYTEST ARGUMENTS]
# Packages that it lacks, torch first of all, are taken from the environment of `make setup`.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-peers
wanted=scripts/peers-requirements.txt

if ! cmp --quiet "$wanted" "$venv/requirements.txt"; then
  echo "installing other stacks for their tests (a minute or two)"
  .venv/bin/python -m venv --clear "$venv"
  own=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$own/borrowed.pth"
  "$venv/bin/python" -m pip install --quiet --requirement "$wanted"
  # verl asks for older tensordict and transformers than the others; what is tested of it does not need them.
  "$venv/bin/python" -m pip install --quiet --no-deps verl==0.9.1
  cp "$wanted" "$venv/requirements.txt"
fi
# Other stacks warn of many things; only our own warnings are errors.
PYTHONPATH=python "$venv/bin/python" -m pytest -o filterwarnings= tests/peers \
  tests/integration/test_store_export.py "$@"
