# `make demo` and `make test` each work on a fresh machine with Linux, root, Rust and gcc.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:

PROFILE ?= dev
DIR := $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
TARGET := $(or $(CARGO_TARGET_DIR),target)
OUT := $(TARGET)/$(DIR)
BIN := $(abspath $(TARGET))/bin-$(DIR)
STATIC := -C target-feature=+crt-static
RUNTIME_PROFILE := $(if $(filter dev,$(PROFILE)),dev,small)
RUNTIME_OUT := $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,small)
export RCLUSTER_BIN_DIR := $(BIN)
export RCLUSTER_VM_KERNEL := $(abspath $(TARGET))/vm/vmlinuz

.PHONY: help build demo test bench sim chaos lint codegen tools

help:
	@echo "make demo    builds everything and runs the story: a lab of 3 + 3 hosts, a service, power cuts"
	@echo "make test    builds and runs every test"
	@echo "make bench   measures, beside Debian's docker where it is installed; prints docs/benchmarks.md's table"
	@echo "make sim     simulates the managers' store under fresh seeds, for HOURS=n of this machine's time"
	@echo "make chaos   real managers under faults, for MINUTES=n; what clients see is checked for linearizability"
	@echo "make sim-ci  simulates what CI does: some 590 hours, half of them fresh, in eight minutes of two processors"
	@echo "make build   builds the programs into $(BIN)"
	@echo "make lint    formatting and clippy, warnings are errors"

# The runtime and the demo's program are linked statically: they start faster and need no library in an image.
build:
	cargo build --profile $(PROFILE) -p rcluster-manager -p rcluster-agent -p rcluster-netd -p rclusterctl -p rcluster-tests
	cargo build --profile $(PROFILE) -p rcluster-probe --bin rcluster-probe-image
	cargo rustc --profile $(RUNTIME_PROFILE) -p rcluster-runtime --bin rcluster-runtime -- $(STATIC)
	mkdir -p $(BIN)
	install -C $(OUT)/rcluster-{manager,agent,netd} $(RUNTIME_OUT)/rcluster-runtime $(OUT)/rclusterctl $(OUT)/rcluster-{demo,bench,bench-runtime,bench-store} $(BIN)/
	cargo rustc --profile $(PROFILE) -p rcluster-probe --bin rcluster-probe -- $(STATIC)
	install -C $(OUT)/rcluster-probe $(BIN)/
	$(OUT)/rcluster-probe-image --binary $(OUT)/rcluster-probe --ref rcluster/probe:demo --out $(BIN)/probe.tar

demo: build
	$(BIN)/rcluster-demo

test: tools build test-image sim-ci
	cargo test --profile $(PROFILE) --workspace

.PHONY: test-image
# The demo's image with a shell beside the demo's program, for what the tests run in containers.
test-image: tools build
	$(OUT)/rcluster-probe-image --binary $(OUT)/rcluster-probe --program "$$(command -v busybox):bin/busybox" \
	  --ref rcluster/busybox:test --out $(BIN)/busybox.tar

# What the tests compare with; the product itself needs none of it.
tools:
	@missing=""
	for tool in busybox:busybox-static runc:runc crun:crun qemu-system-x86_64:qemu-system-x86 docker-registry:docker-registry \
	  skopeo:skopeo zstd:zstd openssl:openssl containerd:containerd dockerd:docker.io newuidmap:uidmap etcd:etcd-server \
	  faketime:faketime ip:iproute2 setpriv:util-linux mkfs.ext4:e2fsprogs; do
	  command -v "$${tool%%:*}" >/dev/null || missing="$$missing $${tool##*:}"
	done
	if [ -n "$$missing" ]; then
	  echo "make: installing what the tests compare with:$$missing"
	  apt-get update -qq
	  # No service may start: the tests start what they need on directories of their own.
	  (
	    policy=/usr/sbin/policy-rc.d
	    if [ ! -e "$$policy" ]; then
	      trap 'rm -f "$$policy"' EXIT
	      printf '#!/bin/sh\nexit 101\n' >"$$policy"
	      chmod 755 "$$policy"
	    fi
	    apt-get install -y -qq --no-install-recommends $$missing >/dev/null
	  )
	fi
	if [ ! -e $(RCLUSTER_VM_KERNEL) ] || [ ! -d $(dir $(RCLUSTER_VM_KERNEL))modules ]; then
	  echo "make: fetching the kernel of the virtual machine: linux-image-cloud-amd64"
	  unpacked=$$(mktemp -d)
	  trap 'rm -rf "$$unpacked"' EXIT
	  apt-get update -qq
	  cd "$$unpacked"
	  apt-get download -qq -o APT::Sandbox::User=root "$$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -1)"
	  dpkg-deb -x linux-image-*.deb .
	  install -D boot/vmlinuz-* $(RCLUSTER_VM_KERNEL)
	  find lib/modules/*/kernel/{arch,crypto,drivers/net,lib,net} -name '*.ko' \
	    -exec install -m 644 -D -t $(dir $(RCLUSTER_VM_KERNEL))modules {} +
	fi

# The managers are measured beside etcd as they are packaged: the whole program optimised as one.
bench: tools
	$(MAKE) build PROFILE=release
	cargo build --profile dist -p rcluster-manager
	$(MAKE) run-bench PROFILE=release

.PHONY: run-bench
run-bench:
	$(BIN)/rcluster-bench
	$(BIN)/rcluster-bench-runtime --runtime $(BIN)/rcluster-runtime
	$(BIN)/rcluster-bench pull
	$(BIN)/rcluster-bench-store --manager $(TARGET)/dist/rcluster-manager
	$(BIN)/rcluster-bench failover
	$(BIN)/rcluster-bench leaders
	$(BIN)/rcluster-bench state
	$(BIN)/rcluster-bench net
	cargo test --profile $(PROFILE) -p rcluster-netd --test netd figures -- --ignored --nocapture

HOURS ?= 1

# What CI simulates, with their lulls: 300 seeds that are always the same, and as many that are drawn; and fresh whole clusters, as many as two
# minutes take.
FRESH ?= 300
# The manager is optimised for it alone: that takes a minute or two more to build and saves ten of a processor, which nothing else would.
SIM := cargo $(if $(filter dev,$(PROFILE)),--config profile.dev.package.rcluster-manager.opt-level=1) run --profile $(PROFILE) -p rcluster-sim --
.PHONY: sim-ci
sim-ci:
	$(SIM) --seed 0 --count 300 --fresh $(FRESH) --threads $$(nproc) --twice-every 30 --at-least 500 --quiet
	$(SIM) --cluster --count 24 --hours 0.03 --threads $$(nproc) --quiet

sim:
	cargo run --release -p rcluster-sim -- --hours $(HOURS) --threads $$(nproc) --quiet

MINUTES ?= 10

chaos: tools build
	RCLUSTER_CHAOS_MINUTES=$(MINUTES) cargo test --profile $(PROFILE) -p rcluster-tests --test chaos -- --nocapture

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

codegen:
	cargo run -q -p rcluster-tests --bin rcluster-codegen
