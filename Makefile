# `make` lists the targets. What they do step by step is in e2e/test.sh.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Only `make demo KUBECONFIG=...` takes an existing cluster. A KUBECONFIG of the environment does not: whoever has one
# exported does not want a demo in it.
ifeq ($(origin KUBECONFIG),command line)
DEMO_KUBECONFIG := $(KUBECONFIG)
endif
unexport KUBECONFIG
# A list of nodes for the demo and for bench-packing: CSV with the header sn,cpu_milli,memory_mib,gpu,model.
NODES ?=
# For bench-packing: a list of tasks (CSV with cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec), seeds, and a policy of
# `spillway simulate openb`.
TASKS ?=
SEEDS ?= 42-51
POLICY ?= dual
# For bench-routing: a trace of requests, JSON lines of timestamp, input_length, output_length, hash_ids.
TRACE ?=
# More arguments for bench-operator (--nodes, --reservations, --tenants, --rate), bench-scale (--nodes, --nodes-per-booking, --tenants,
# --heartbeat-seconds, --seconds), bench-recovery (--nodes, --bookings, --tenants, --kills, --step, --stopped, --pause-seconds),
# bench-planner (NODES BOOKINGS WAITING SAMPLES as numbers), bench-routing (--engines, --blocks, --load, --gateways, --untold-blocks) and bench-gateway
# (--rounds, --seconds, --peers).
BENCH_ARGS ?=
# More arguments for `helm install`, such as --set image.operator.repository=... with an existing cluster.
HELM_ARGS ?=
# How often `make soak` kills the operator.
KILLS ?= 1000
# How long `make fuzz` fuzzes each parser, in seconds.
FUZZ_SECONDS ?= 60

.PHONY: help demo test lint unit e2e soak bench-packing bench-operator bench-scale bench-recovery bench-planner bench-routing bench-gateway fuzz advisories generate docs images clean-lab

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '%s\n' '' \
	  '  make demo NODES=nodes.csv      pools from your own list of nodes (sn,cpu_milli,memory_mib,gpu,model)' \
	  '  make demo KUBECONFIG=~/.kube/config HELM_ARGS="--set image.operator.repository=..."' \
	  '                                 an existing cluster: only install the chart and show'

demo: ## Start a real Kubernetes here, install Spillway and sell GPU nodes on it (as root)
	@e2e/test.sh demo --nodes '$(NODES)' --existing '$(DEMO_KUBECONFIG)' --helm-args '$(HELM_ARGS)'

test: ## Everything: lint, units and properties, the model check, then end-to-end on the lab (as root)
	@e2e/test.sh test

lint: ## Formatting, clippy, licences and duplicates (cargo deny), direction of dependencies
	@e2e/test.sh lint

unit: ## Unit tests, properties, the model check and the examples of the documentation; no Kubernetes
	@e2e/test.sh unit

e2e: ## The tests on a real Kubernetes, one after the other; TESTS="attacks sale" runs only those (as root)
	@e2e/test.sh e2e

soak: ## Kill the operator 1000 times while reservations churn, then verify; KILLS=n for another number (as root)
	@SPILLWAY_SOAK_KILLS='$(KILLS)' e2e/test.sh soak

bench-operator: ## How fast a real operator sells 4,000 devices of 500 nodes on a real API server, as JSON (as root)
	@e2e/test.sh bench-operator $(BENCH_ARGS)

bench-scale: ## Start on 1,000 and 5,000 nodes, memory, CPU and writes while only heartbeats come, as JSON (as root)
	@e2e/test.sh bench-scale $(BENCH_ARGS)

bench-recovery: ## Kill the operator under 50,000 bookings: how soon the ledger is read and the next sale made, as JSON (as root)
	@e2e/test.sh bench-recovery $(BENCH_ARGS)

bench-planner: ## How long the planner takes for one arrival, end and loss in 10,000 nodes with 50,000 bookings, as JSON
	@e2e/test.sh bench-planner $(BENCH_ARGS)

bench-packing: ## How much of a cluster's GPUs a list of tasks fills, as JSON: NODES=nodes.csv TASKS=tasks.csv [SEEDS=42-51]
	@e2e/test.sh bench-packing --nodes '$(NODES)' --tasks '$(TASKS)' --seeds '$(SEEDS)' --policy '$(POLICY)'

bench-gateway: ## What the gateway costs beside routers of others before one engine, as JSON
	@e2e/test.sh bench-gateway $(BENCH_ARGS)

bench-routing: ## How well the gateway spreads requests over engines, by simulation, as JSON: TRACE=file.jsonl
	@e2e/test.sh bench-routing --trace '$(TRACE)' $(BENCH_ARGS)

fuzz: ## Fuzz the gateway's parsers of requests, streams and its log, each for FUZZ_SECONDS (needs a nightly toolchain)
	@e2e/test.sh fuzz $(FUZZ_SECONDS)

advisories: ## Look the dependencies up in the RustSec advisory database (fetches it from github.com)
	@e2e/test.sh advisories

generate: ## Write the CRDs (crds/*.yaml and the chart's copies) from the Rust types
	cargo run --quiet -p spillway-crds --bin crdgen

docs: ## Build the book into docs/book/book, installing mdBook into the cache first
	@e2e/test.sh docs

images: ## Build the images of our binaries and load them into the demo's cluster (or LAB=name)
	@e2e/test.sh images

clean-lab: ## Take down every lab of this machine: processes, namespaces, bridges, cgroups, mounts
	@e2e/test.sh clean-lab
