# Thin verbs: each calls xtask/setup.sh, cargo or cargo xtask and does nothing itself. `make help` lists them.
.DEFAULT_GOAL := help
# One cargo at a time: it uses all processors itself.
.NOTPARALLEL:
# cargo install puts its programs there; a machine without rustup has not yet got it in PATH.
export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin:/usr/sbin:/sbin

.PHONY: help setup setup-build setup-kube build images demo test e2e test-unit test-kernels test-random test-loss bench bench-checks bench-failover bench-scale simulate-rollouts fmt lint generate check-generated clean

help: ## List the verbs
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: setup-build setup-kube ## Install what building and testing needs and this machine lacks

setup-build:
	@xtask/setup.sh

setup-kube: setup-build
	@xtask/setup.sh --kube

build: setup-build ## Build the BPF programs, the agent and the operator
	cargo xtask build-bpf
	cargo build

images: setup-build ## Write container images of Sluice and of what its tests run, without Docker
	cargo xtask images

demo: build $(if $(KUBE),setup-kube) ## Traffic in every mode, a takeover and a canary, in network namespaces; KUBE=1: with a real API server
	cargo run --quiet --package sluice-tests --bin demo -- $(if $(KUBE),--kubernetes)

test: setup ## Run all tests (as root: they make network namespaces and load BPF programs)
	cargo xtask test

e2e: setup ## Run the tests on a real Kubernetes of three nodes
	cargo xtask test --package sluice-e2e

test-unit: ## Run the tests that need neither root nor BPF nor Kubernetes
	cargo xtask test --unit

test-kernels: setup-build ## Load the programs and run the packet tables on an older kernel under qemu
	cargo xtask test --package sluice-tests --test kernels

test-random: setup-build ## Edit, kill and cut at random under traffic, for MINUTES (10); SEED=<number>: that run again
	$(if $(SEED),SEED=$(SEED)) MINUTES=$(or $(MINUTES),10) cargo xtask test --package sluice-tests --test network_random

test-loss: setup ## Lose a third of the questions for VIPs, at random and then in bursts, for MINUTES (10) each
	SLUICE_LOSS_SECONDS=$$((60 * $(or $(MINUTES),10))) cargo xtask test --package sluice-tests --test network_failover -- "lost questions"

bench: setup-build ## Measure nanoseconds per packet; BASE=<commit>: beside that commit's, in one run
	cargo xtask build-bpf
	$(if $(BASE),cargo xtask build-base $(BASE))
	cargo build --release --quiet --package sluice-tests --bin bench --bin bench_worker
	target/release/bench $(if $(BASE),--base target/base)

bench-checks: setup ## Measure what health checks of 5,000 servers cost an agent; figures in target/bench-checks.json
	cargo xtask build-bpf
	cargo build --release --quiet --bin sluice-operator --bin sluice-agent --bin bench_checks
	target/release/bench_checks

bench-failover: setup ## Measure how long VIPs do not answer when directors go; figures in target/bench-failover.json
	cargo xtask build-bpf
	cargo build --release --quiet --bin sluice-operator --bin sluice-agent --bin kubectl-sluice --bin bench_failover
	target/release/bench_failover

bench-rollback: setup ## Measure how long failing candidates stay until they are rolled back; figures in target/bench-rollback.json
	cargo xtask build-bpf
	cargo build --release --quiet --bin sluice-operator --bin sluice-agent --bin kubectl-sluice --bin bench_rollback
	target/release/bench_rollback

bench-scale: setup ## Measure what a change costs with 10,000 virtual servers; figures in target/bench-scale.json
	cargo build --release --quiet --package sluice-operator --package sluice-scale
	target/release/sluice-scale

simulate-rollouts: setup-build ## Simulate rollouts: how often their analysis is wrong, and how soon it finds a fault
	cargo run --release --quiet --package sluice-rollout --example simulate_rollouts

fmt: ## Format the code
	cargo xtask fmt

lint: ## Check format, lints, licences and generated files
	@xtask/setup.sh --lint
	cargo xtask lint

generate: ## Write the generated files
	cargo xtask generate

check-generated: ## Fail if a generated file is not what would be generated
	cargo xtask generate --check

clean: ## Remove everything that was built
	cargo clean
