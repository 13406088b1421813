# `make help` lists the targets. Everything works as root, or as a user who may use sudo.

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# Kernel and end-to-end tests need root: as another user, cargo runs each test binary through sudo.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr a-z- A-Z_)
AS_ROOT = $(if $(SUDO),env CARGO_TARGET_$(HOST)_RUNNER="sudo -E env PATH=$$PATH")
NEXTEST_PROFILE ?= default

# What the tests call: programs that scripts/install unpacks, and those that only root has in its PATH.
test: export PATH := $(abspath $(TARGET_DIR))/tools/bin:$(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help build image run test test-v2 oci-suites podman-suite bench lint lint-deny install-deps-run install-deps-test clean

help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "  make %-18s %s\n", $$1, $$2 }'

build: ## Build the release binary, target/release/berth
	$(CARGO) build --release --locked -p berth

image: install-deps-run build ## Build the image of charts/berth as a root file system, target/berth-image.tar
	scripts/image $(TARGET_DIR)/release/berth >$(TARGET_DIR)/berth-image.tar.new
	mv $(TARGET_DIR)/berth-image.tar.new $(TARGET_DIR)/berth-image.tar
	@ls -lh $(TARGET_DIR)/berth-image.tar

run: install-deps-run build ## Run the demo: a node with manifests/demo/ in folders of its own; Ctrl-C removes it all
	@$(SUDO) scripts/demo $(TARGET_DIR)/release/berth

test: install-deps-test ## Run all tests (unit, property, kernel, end to end); ends with nextest's summary
	$(CARGO) build --locked -p berth
	$(CARGO) test --locked --workspace --doc --quiet
	$(AS_ROOT) BERTH_BIN=$(abspath $(TARGET_DIR))/debug/berth $(CARGO) nextest run --locked --workspace --profile $(NEXTEST_PROFILE)

test-v2: install-deps-test ## Run the kernel tests on a pure cgroup v2 tree: this machine's, or a small VM's
	scripts/vm/test

oci-suites: ## Run the OCI validation suite for berth-oci, crun and runc, side by side (its first run downloads some 60 MB)
	$(CARGO) build --locked -p berth
	scripts/oci-suites $(OCI_TESTS)

podman-suite: ## Run podman's own tests with berth-oci, crun and runc, side by side (its first run downloads some 20 MB; takes an hour or more)
	$(CARGO) build --locked -p berth
	scripts/podman-suite $(PODMAN_TESTS)

bench: install-deps-test build ## Measure starts, deletes, exec, memory and idle CPU; beside podman, crun and runc where they can be had
	$(CARGO) build --release --locked -p berth-e2e --bin bench
	@$(SUDO) env BERTH_BIN=$(abspath $(TARGET_DIR))/release/berth $(TARGET_DIR)/release/bench $(BENCH_ARGS)

lint: ## Check formatting and clippy; a warning is an error
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --workspace --all-targets --features berth-e2e/systemd-tests,berth-e2e/selinux-tests -- -D warnings

lint-deny: ## Check licences, sources and banned crates with cargo-deny (built on first use: some minutes)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check licenses bans sources

install-deps-run: ## Install what `make run` needs and is missing (apt)
	@scripts/install run

install-deps-test: ## Install what `make test` needs and is missing (apt, crates.io)
	@scripts/install test

clean: ## Remove build results
	$(CARGO) clean
