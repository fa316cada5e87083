#!/usr/bin/env bash
# The core's unsafe code under AddressSanitizer, ThreadSanitizer and miri: bash scripts/sanitize.sh [address|thread|miri]...
# Needs a nightly toolchain; ThreadSanitizer its component rust-src (it would report the standard library
# otherwise, which has to be compiled with it too), miri rust-src and miri.
set -euo pipefail
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "skipped: sanitizers need the nightly toolchain: rustup toolchain install nightly"
    exit 0
fi
host=$(rustc -vV | sed -n 's/^host: //p')
targets=${CARGO_TARGET_DIR:-target/sanitize}
parts=("$@")
[ $# -gt 0 ] || parts=(address thread miri)
tests=(-p k15-core -p k15-shared --lib --test threads)

lacks() {
    for component in "${@:2}"; do
        if ! rustup component list --toolchain nightly | grep -q "^$component.*(installed)"; then
            echo "skipped: $1 needs more of the toolchain: rustup component add --toolchain nightly $component"
            return 0
        fi
    done
    return 1
}

for part in "${parts[@]}"; do
    # One folder each: what they compile fits together with nothing else.
    export CARGO_TARGET_DIR=$targets/$part
    case $part in
    address)
        RUSTFLAGS=-Zsanitizer=address cargo +nightly test --quiet --target "$host" "${tests[@]}"
        ;;
    thread)
        lacks ThreadSanitizer rust-src && continue
        RUSTFLAGS=-Zsanitizer=thread cargo +nightly test --quiet --target "$host" -Zbuild-std "${tests[@]}"
        ;;
    miri)
        lacks miri rust-src miri && continue
        # The tests that run unsafe code and map no file, which miri cannot.
        cargo +nightly miri test --quiet -p k15-core --lib -- pages:: handover:: \
            what_is_published_is_read_back a_word_outside_the_map_is_refused words_may_change_while_they_are_read
        # The crew's threads end with the process.
        MIRIFLAGS=-Zmiri-ignore-leaks cargo +nightly miri test --quiet -p k15-core --lib -- crew::
        ;;
    *)
        echo "$part: expected address, thread or miri" >&2
        exit 2
        ;;
    esac
done
