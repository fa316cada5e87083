#!/usr/bin/env bash
# Rust tests: nextest where it is installed, cargo's own runner elsewhere; documentation tests always.
set -euo pipefail
# The bindings link against Python only inside Python, so they are tested from there.
packages=(--workspace --exclude k15-python)
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run "${packages[@]}" --no-tests pass
else
  cargo test "${packages[@]}" --lib --bins --tests
fi
cargo test "${packages[@]}" --doc --quiet
