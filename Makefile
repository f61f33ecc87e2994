# A verb a line; `make help` lists them.
.PHONY: help try test build install guests lab bench fuzz model protocol docs check clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

try: ## boot a Debian guest with a disk from Sluice; IOMMU=off|strict|lazy|pt|amd|virtio RING=split|packed
	@Scripts/try

test: ## everything CI runs: units, guests, fuzzers, the memory model, thread sanitizer
	@Scripts/test

build: ## the release build, its manual and its completions
	@Scripts/install build
	swift build -c release
	@Scripts/manual

install: ## what `make build` made and its descriptors, into PREFIX (/usr/local), below DESTDIR
	@Scripts/deploy

guests: ## the guest matrix alone
	@Scripts/guests

lab: ## every system and every adverse job of Documentation/lab.md; SYSTEMS="strict smmu plug-off ..." for some
	@Scripts/lab/run $(SYSTEMS)

bench: ## benchmarks, against qemu-storage-daemon; `make bench ARGS=...`
	@Scripts/bench $(ARGS)

fuzz: ## the fuzzers, 60 seconds each
	@Scripts/fuzz

model: ## random machines against a model of their memory, 60 seconds; SECONDS=3600 for longer, SEED=... again
	@Scripts/model $(or $(SECONDS),60) $(SEED)

protocol: ## the protocol between queues and unmaps, checked by spin
	@Scripts/protocol

docs: ## the documentation with its diagrams, the manual, completions
	@Scripts/docs
	@Scripts/manual

check: ## format, floors, the unsafe count
	@Scripts/check

clean: ## the build products; the lab's cache stays (remove ~/.cache/sluice for that)
	rm -rf .build .build-* docs-out
