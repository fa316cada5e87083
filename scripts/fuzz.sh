#!/usr/bin/env bash
# libFuzzer over the readers of the log, with AddressSanitizer: bash scripts/fuzz.sh [SECONDS]. Needs a
# nightly toolchain and a C++ compiler. What it keeps is in target/fuzz/log.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "skipped: fuzzing needs the nightly toolchain: rustup toolchain install nightly"
    exit 0
fi
corpus=$PWD/target/fuzz/log
mkdir -p "$corpus"
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares"
export RUSTFLAGS="$coverage -Ccodegen-units=1 -Zsanitizer=address --cfg fuzzing" CARGO_TARGET_DIR=$PWD/target/fuzz/build
host=$(rustc -vV | sed -n 's/^host: //p')
cargo +nightly run --quiet --release --manifest-path rust/fuzz/Cargo.toml --target "$host" --bin log -- \
  "$corpus" -max_total_time="${1:-900}" -max_len=512 -timeout=20 -artifact_prefix="$corpus-" -print_final_stats=1
