# Every target sets up what it needs. `make help` lists them.
VENV ?= .venv
PY := $(VENV)/bin/python
RUST := $(shell find rust -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock
SEED ?= 0
RUNNER ?= direct
RUNS ?= 100000
FUZZ_SECONDS ?= 900
HOURS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup build daemon demo demo-engines test test-rust test-python test-peers lint fmt bench soak soak-sandbox soak-store soak-daemon sanitize fuzz break-defences test-v2 clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## make the virtual environment with everything that training and the tests need

$(VENV)/.ready: pyproject.toml scripts/setup.sh
	@bash scripts/setup.sh $(VENV)
	@touch $@

build: $(VENV)/.built ## compile the Rust core, the spawner and the daemon, and install the package, editable

$(VENV)/.built: $(VENV)/.ready $(RUST)
	@bash scripts/build_spawner.sh
	@bash scripts/build_daemon.sh
	@$(VENV)/bin/maturin develop --release --quiet >/dev/null
	@touch $@

daemon: ## the sandbox and its daemon without what training needs: `.venv/bin/k15 sandbox serve`
	@[ -e $(VENV)/.ready ] || bash scripts/setup.sh $(VENV) core
	@$(MAKE) --no-print-directory --assume-old=$(VENV)/.ready $(VENV)/.built

demo: build ## train a small model from scratch by the k1.5 recipe (minutes, CPU); SEED=n picks another run
	@$(VENV)/bin/k15 train recipes/doors.yaml --seed $(SEED) --name doors-seed$(SEED) --overwrite

demo-engines: build ## the demo's task on vLLM and Megatron-core, for CPUs (an environment of its own, minutes)
	@bash scripts/vllm_environment.sh
	@PYTHONPATH=python .venv-vllm/bin/python -m k15core.cli train recipes/doors_engines.yaml --overwrite

test: test-rust test-python ## all tests that can run on this machine

test-rust: $(VENV)/.ready ## the Rust core's unit, property and documentation tests
	@bash scripts/test_rust.sh

test-python: build ## the Python tests
	@bash scripts/test_tools.sh $(PY)
	@$(PY) -m pytest

test-peers: build ## tests against other stacks, each in an environment of its own
	@bash scripts/test_peers.sh

lint: build ## formatting, lints, types, the stub gate
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --quiet -- -D warnings
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(PY) -m mypy.stubtest k15core._core --mypy-config-file pyproject.toml

fmt: $(VENV)/.ready ## format everything
	@cargo fmt --all
	@$(VENV)/bin/ruff check --fix --quiet . ; $(VENV)/bin/ruff format --quiet .

sanitize: ## the tests of the core's unsafe code under AddressSanitizer, ThreadSanitizer and miri; needs a nightly toolchain
	@bash scripts/sanitize.sh

fuzz: ## libFuzzer over the readers of the store's log, with AddressSanitizer; FUZZ_SECONDS=900, needs nightly
	@bash scripts/fuzz.sh $(FUZZ_SECONDS)

break-defences: build ## take out one defence of the sandbox after the other; writes docs/sandbox-attacks.md
	@$(PY) scripts/break_defences.py

test-v2: build ## the sandbox on a kernel with cgroup v2 only, booted in qemu
	@bash scripts/test_v2.sh

soak: soak-sandbox soak-store soak-daemon ## all soaks, one after the other

soak-sandbox: build ## 100,000 sandboxed runs in a row while slots are killed; RUNNER=name and RUNS=n pick others
	@PYTHONPATH=tests $(PY) -m soak --runner $(RUNNER) --runs $(RUNS)

soak-store: build ## two hours of churn on a durable store at its capacity; HOURS=n picks another time
	@PYTHONPATH=tests $(PY) -m soak.store --hours $(HOURS)

soak-daemon: build ## a minute of ten times what a daemon bears, then fifty kills under load
	@PYTHONPATH=tests $(PY) -m soak.daemon

bench: build ## measure the claims against their peers; writes bench/out/summary.json
	@cargo build --quiet --release --package k15-sandboxd --example load
	@$(PY) -m bench

clean: ## remove what was built; runs/ stays
	rm -rf $(VENV) .venv-* target bench/out python/k15core/*.so python/k15core/_bin
