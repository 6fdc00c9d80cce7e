# `make demo` and `make test` are all that a fresh machine with a Rust toolchain and root (or sudo) needs.

.PHONY: demo test bench bench-learn bench-attribution bench-watch soak supply sbom reproducible packages image-test

# What it does, shown: a decoy cloud, a guarded vm, callers of every kind. Touches nothing of the machine's own network.
demo:
	@bash demo/run.sh

# Every test. As root the end-to-end tests too; others are told that those were skipped.
test:
	@bash scripts/test.sh

# Every figure of docs/performance.md, whose tables it writes anew: side by side with nginx and HAProxy, in network namespaces
# of its own. `bash scripts/bench.sh --quick` tries it and writes nothing.
bench:
	@bash scripts/bench.sh --docs docs/performance.md

# Ten million events through `imds-guard learn`. See docs/performance.md.
bench-learn:
	@bash scripts/bench-learn.sh

# Floods, kills, reloads, broken surroundings, and hours if wanted (SOAK_SECONDS=3600); SCENARIO names one.
# See docs/reliability.md.
soak:
	@bash scripts/soak.sh $(SCENARIO) $(SOAK_ARGUMENTS)

# What the program is made of: licences, doubles, sources, known holes. See docs/supply-chain.md.
supply:
	@bash scripts/supply.sh

# The same as a list for machines (CycloneDX).
sbom:
	@bash scripts/sbom.sh

# Two builds of the release in two folders, and the same bytes. Takes some minutes.
reproducible:
	@bash scripts/reproducible.sh

# How long it takes to know a caller beside 200, 2,000 and 10,000 other processes (root). See docs/performance.md.
bench-attribution:
	@cargo bench --quiet --bench attribution

# What `watch-commands` costs at a thousand programs a second (root). See docs/performance.md.
bench-watch:
	@cargo bench --quiet --bench watch

# The .deb and the .rpm, under target/packages.
packages:
	@bash scripts/packages.sh

# A Debian image with the package: installed, upgraded and removed, then booted by qemu; and the examples of docs/image.md.
# A quarter of an hour. The matrix of failure directions is in `make test`. See docs/image.md.
image-test: packages
	@bash scripts/needs.sh image
	@bash scripts/image-test.sh packages target/packages/imds-guard_*.deb target/packages/imds-guard-*.rpm
	@bash scripts/image-test.sh qemu target/packages/imds-guard_*.deb
	@bash scripts/image-examples.sh target/packages/imds-guard_*.deb
