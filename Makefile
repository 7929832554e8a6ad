# Everything one types. Every target makes .venv itself, and again when the dependencies change.
# Overridable: PYTHON, CONFIG, CORPUS, STORE, PYTEST_ARGS, BENCH_ARGS.

PYTHON ?= python3
CONFIG ?= configs/late.toml
CORPUS ?=
STORE ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := .venv/bin
PACKAGES := features pipeline trainer
LINKS := $(PACKAGES:%=.types/mmfuse/%)
PLANS := early late text_only audio_only midi_only

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo features train check test test-full bench docs dist clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

install: .venv/.test ## .venv with mmfuse and what tests and checks need

demo: .venv/.test ## sample corpus -> features -> five trained models -> their comparison, two pages
	$(BIN)/mmfeat sample demo/corpus
	$(BIN)/mmfeat run configs/late.toml
	for plan in $(PLANS); do $(BIN)/mmtrain run configs/$$plan.toml --overwrite || exit; done
	$(BIN)/mmtrain compare $(PLANS:%=runs/%)
	$(BIN)/mmfeat report demo/store.zarr --out demo/store.html
	$(BIN)/mmtrain report $(PLANS:%=runs/%) --out demo/runs.html

features: .venv/.test ## streams that CONFIG asks for; CORPUS=... STORE=... stand in for [data]
	$(BIN)/mmfeat run $(CONFIG) $(CORPUS:%=--corpus %) $(STORE:%=--store %)

train: .venv/.test ## the model that CONFIG describes; CORPUS=... STORE=... as for features
	$(BIN)/mmtrain run $(CONFIG) $(CORPUS:%=--set data.corpus=%) $(STORE:%=--set data.store=%)

check: .venv/.test $(LINKS) ## style, types, layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES:%=-p mmfuse.%)
	$(BIN)/pytest -q tests/test_layout.py

test: .venv/.test ## every test but the slow ones; PYTEST_ARGS="-k store"
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile $(PYTEST_ARGS)

test-full: .venv/.test ## every test
	$(BIN)/pytest $(PYTEST_ARGS)

bench: .venv/.bench ## every ratio that is claimed, into docs/bench and docs/benchmarks.md; BENCH_ARGS="storage --quick"
	$(BIN)/python tests/benchmarks/all.py $(BENCH_ARGS)
	$(BIN)/python docs/make_benchmarks.py

docs: .venv/.docs ## site/ from docs/, with docs/cli.md written anew from --help
	$(BIN)/python docs/make_cli.py
	$(BIN)/mkdocs build --strict

dist: .venv/.test ## sdist and wheel, in dist/, made without network
	rm -rf build dist *.egg-info
	mkdir -p dist
	$(BIN)/python -c 'from setuptools import build_meta as b; b.build_sdist("dist")'
	$(BIN)/python -c 'from setuptools import build_meta as b; b.build_wheel("dist")'

clean: ## remove what the other targets made, except .venv
	rm -rf demo $(PLANS:%=runs/%) site build dist *.egg-info .types
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(PACKAGES) tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and .venv
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is \
	needed, this is " + sys.version.split()[0] + "; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

# The stamp of a set of extras; bench and docs come on top of test and check.
.venv/.test: pyproject.toml requirements.lock | .venv/bin/python
	$(BIN)/pip install -c requirements.lock -e '.[test,check]'
	touch $@

.venv/.bench .venv/.docs: .venv/.%: .venv/.test
	$(BIN)/pip install -c requirements.lock -e '.[$*]'
	touch $@

.types/mmfuse/%:
	mkdir -p $(@D)
	ln -sfn ../../$* $@
