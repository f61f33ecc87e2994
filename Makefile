# A verb a line; `make help` lists them.
.PHONY: help try test build install uninstall guests lab bench fuzz model protocol docs docs-serve check clean

# A variable that no verb knows would be ignored without a word, and something else be done than was asked for.
known := IOMMU RING QUEUES SYSTEMS ARGS SECONDS SEED PREFIX DESTDIR DOCS_BASE PORT KEEP LIMIT JOBS OUT SLUICE BACKEND \
  SLUICE_OPTIONS SLUICE_CACHE SLUICE_MIRROR TMPDIR CI SHELL
unknown := $(filter-out $(known),$(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
ifneq ($(unknown),)
$(error no verb knows the variable $(unknown); names are in capitals: $(known))
endif

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

try: ## boot a Debian guest with a disk from Sluice; IOMMU=off|strict|lazy|pt|amd|virtio RING=split|packed QUEUES=1..4
	@Scripts/try

test: ## everything CI runs: units, guests, fuzzers, the memory model, thread sanitizer, manual, documentation; ARGS="units docs ..." for some
	@Scripts/test $(ARGS)

build: ## build the release, its man pages and its completions
	@Scripts/install build
	swift build -c release
	@Scripts/manual

install: ## install the result of `make build` and its descriptors into PREFIX (/usr/local), below DESTDIR
	@Scripts/deploy

uninstall: ## remove what `make install` installed into PREFIX, below DESTDIR
	@Scripts/deploy --remove

guests: ## run the matrix of real guests only
	@Scripts/guests

lab: ## run every system and every adverse job of Documentation/lab.md; SYSTEMS="strict smmu plug-off ..." for some
	@Scripts/lab/run $(SYSTEMS)

bench: ## run the benchmarks, compared with qemu-storage-daemon; `make bench ARGS=...`
	@Scripts/bench $(ARGS)

fuzz: ## run the fuzzers, 60 seconds each
	@Scripts/fuzz

model: ## test random machines against a model of their memory, 60 seconds; SECONDS=3600 for longer, SEED=... again
	@Scripts/model $(or $(SECONDS),60) $(SEED)

protocol: ## check the protocol between queues and unmaps with spin
	@Scripts/protocol

docs: ## build the documentation site with its diagrams, the man pages and completions; DOCS_BASE=/PATH for a server with it below PATH
	@Scripts/docs
	@Scripts/manual

docs-serve: ## serve the documentation on http://127.0.0.1:8000/; PORT=... on another port
	@Scripts/docs --serve

check: ## the format (swift format, .swift-format), that every import is declared, that the diagrams are as the package is
	@Scripts/check

clean: ## remove the build products; the lab's cache stays (remove ~/.cache/sluice for that)
	rm -rf .build .build-* docs-out
