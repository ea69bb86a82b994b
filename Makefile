# Entry points for people and machines; everything real is in SwiftPM and scripts/.
SCRATCH ?= .build
SWIFT = swift
FLAGS = --scratch-path $(SCRATCH)
SOURCES = Sources Tests Package.swift

.PHONY: all build run run-aarch64 test test-all integration fmt check bench docs deps guest clean
all: build

# Release programs, as bin/apus-*.
build:
	$(SWIFT) build $(FLAGS) -c release
	@mkdir -p bin
	@directory=$$($(SWIFT) build $(FLAGS) -c release --show-bin-path) && \
	for target in riscv64 aarch64; do ln -sf "$$directory/apus-system" bin/apus-system-$$target; done && \
	ln -sf "$$directory/apus" bin/apus && \
	for tool in img io nbd; do ln -sf "$$directory/apus-storage" bin/apus-$$tool; done && \
	if [ -x "$$directory/apus-user" ]; then for guest in riscv64 aarch64; do ln -sf "$$directory/apus-user" bin/apus-$$guest; done; fi

# A shell in a Debian kernel. ARGS="..." adds options.
run: deps build
	@guest=$$(scripts/fetch-guest) && exec bin/apus-system-riscv64 -M virt -smp 2 -m 512 -nographic \
	-bios "$$guest/opensbi/fw_dynamic.bin" -kernel "$$guest/Image" -initrd "$$guest/initramfs.cpio" \
	-append "console=ttyS0" $(ARGS)

# The same in an AArch64 machine.
run-aarch64: deps build
	@guest=$$(scripts/fetch-guest aarch64) && exec bin/apus-system-aarch64 -M virt -cpu max -smp 2 -m 512 -nographic \
	-kernel "$$guest/Image" -initrd "$$guest/initramfs.cpio" -append "console=ttyAMA0" $(ARGS)

# Unit tests, then the quick integration tests; test-all adds the long ones (a Debian root file system, ...).
test: deps build
	@scripts/test

test-all: deps build
	@scripts/test --all

integration: build
	@scripts/integration

fmt:
	$(SWIFT) format format -i -r -p $(SOURCES)

check:
	scripts/check-arrows $(FLAGS)
	$(SWIFT) format lint --strict -r -p $(SOURCES)

bench: build
	@Benchmarks/run

docs:
	@scripts/check-docs

deps:
	scripts/install-deps

guest:
	scripts/fetch-guest

clean:
	rm -rf $(SCRATCH) bin
