# `make demo` and `make test` are all that a fresh machine with a Rust toolchain and root (or sudo) needs.

.PHONY: demo test

# What it does, shown: a decoy cloud, a guarded vm, callers of every kind. Touches nothing of the machine's own network.
demo:
	@bash demo/run.sh

# Every test. As root the end-to-end tests too; others are told that those were skipped.
test:
	@bash scripts/test.sh
