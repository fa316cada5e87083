#!/usr/bin/env bash
# An environment beside .venv that borrows from it what it lacks, torch first of all:
# bash scripts/borrowing_venv.sh VENV REQUIREMENTS [PIP ARGUMENTS FOR A SECOND CALL]
# Nothing is done where it has been made from the same list before.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
wanted=$2
shift 2
cmp --quiet "$wanted" "$venv/requirements.txt" && exit
echo "installing what $wanted names (a minute or two)"
.venv/bin/python -m venv --clear "$venv"
own=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$own/borrowed.pth"
"$venv/bin/python" -m pip install --quiet --requirement "$wanted"
[ $# = 0 ] || "$venv/bin/python" -m pip install --quiet "$@"
cp "$wanted" "$venv/requirements.txt"
