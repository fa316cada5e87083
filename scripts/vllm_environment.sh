#!/usr/bin/env bash
# The environment .venv-vllm: vLLM for CPUs, beside what .venv has (megatron-core among it).
set -euo pipefail
cd "$(dirname "$0")/.."
# vLLM for the CPU names a torchvision of the CUDA build among what it needs: the list is whole without.
PIP_NO_DEPS=1 bash scripts/borrowing_venv.sh .venv-vllm scripts/vllm-requirements.txt
