#!/usr/bin/env bash
# AddressSanitizer over the unit tests of the store's crates, in which all of their unsafe code runs, on
# real maps. Needs a nightly toolchain.
set -euo pipefail
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "skipped: sanitizers need the nightly toolchain: rustup toolchain install nightly"
    exit 0
fi
export RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/sanitize}"
host=$(rustc -vV | sed -n 's/^host: //p')
cargo +nightly test --quiet --target "$host" -p k15-core -p k15-shared --lib
