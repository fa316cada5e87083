#!/usr/bin/env bash
# Makes the virtual environment: bash scripts/setup.sh VENV [core]
# Needs Python >= 3.11 and a Rust toolchain; as root on Debian or Ubuntu it installs what Python's venv lacks.
set -euo pipefail
venv=$1
what=${2:-all}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "k15core needs Python >= 3.11; $("$python" --version) was found. Set PYTHON=/path/to/python3.11." >&2; exit 2; }
command -v cargo >/dev/null ||
  { echo "k15core needs a Rust toolchain (cargo >= 1.88): see https://rustup.rs" >&2; exit 2; }

if ! "$python" -c 'import ensurepip' 2>/dev/null || ! command -v cc >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing python3-venv, python3-dev and a C linker with apt"
    apt-get update -qq && apt-get install -y -qq python3-venv python3-dev gcc libc6-dev >/dev/null
  else
    echo "missing: Python's ensurepip or a C linker. Debian and Ubuntu: sudo apt install python3-venv gcc" >&2
    exit 2
  fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
[ "$what" = core ] || echo "installing Python packages (torch is large: a few minutes on the first run)"
"$venv/bin/python" scripts/requirements.py "$what" | "$venv/bin/python" -m pip install --quiet --requirement /dev/stdin
