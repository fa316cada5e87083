#!/usr/bin/env bash
# Builds the sandbox's daemon, linked statically, and puts it into the Python package.
set -euo pipefail
cd "$(dirname "$0")/.."
target=x86_64-unknown-linux-gnu
RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
  cargo build --quiet --profile daemon --package k15-sandboxd --target "$target"
mkdir -p python/k15core/_bin
install -m 755 "target/$target/daemon/k15-sandboxd" python/k15core/_bin/k15-sandboxd
