# The commands of the house; `make` alone lists them.
# Everything is installed into .venv (the project), .venv-stubs (the pinned stub generator) and
# .venv-triton (tritonclient, whose pins and descriptors collide with ours) inside this folder; a
# stamp in each says that it is up to date, so that a second call costs nothing. The tutorials get
# a fresh .venv-tutorials each time.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

# hnswlib is compiled here: not for this machine's very CPU (see tools/environment.py).
export HNSWLIB_NO_NATIVE := 1

# The first of these that runs and is 3.11 or 3.12 (a name on the path need not run).
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo "$$name" && break; done)
# The package index to take torch from, where the default one would bring CUDA.
TORCH_INDEX ?=
# "yes": take the CUDA build of torch although no GPU is here.
CUDA ?=
PYTEST_ARGS ?=
SERVE_ARGS ?=
# What tutorials need and the repository does not hold, NAME=PATH each.
PUT ?=

venv := .venv
bin := $(venv)/bin
pins := pyproject.toml constraints.txt tools/environment.py
environment = $(PYTHON) tools/environment.py --goal $(or $(firstword $(MAKECMDGOALS)),demo) --torch-index "$(TORCH_INDEX)" --cuda "$(CUDA)"

.PHONY: help demo serve test test-long tutorials docs triton check stubs pins wheel container-dry-run clean python

help: ## list these commands
	@echo "usage: make COMMAND [PYTHON=python3.12] [TORCH_INDEX=<address>] [CUDA=yes]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

demo: all-installed ## train on real handwriting, export, serve, enrol, search (under ten minutes)
	@$(bin)/twinserve demo

serve: all-installed ## serve the demo's twin until Ctrl-C (SERVE_ARGS="--grpc-port 0" and the like)
	@if [ ! -f runs/demo/twin.onnx ]; then
		echo "twinserve: runs/demo/twin.onnx is not there yet: run make demo first" >&2; exit 1
	fi
	exec $(bin)/twinserve serve --model runs/demo/twin.onnx --data-dir runs/demo/data $(SERVE_ARGS)

test: dev-installed ## run the tests (PYTEST_ARGS="-k name" picks some, "-n 2" runs two at a time)
	@$(bin)/pytest -m "not long" $(PYTEST_ARGS)

test-long: dev-installed ## run the long tests too: minutes to hours
	@$(bin)/pytest -m long $(PYTEST_ARGS)

tutorials: python ## run docs/tutorials as written, in a fresh environment (PUT="orl_faces.zip=PATH …")
	@rm -rf .venv-tutorials
	$(environment) --extra all .venv-tutorials
	.venv-tutorials/bin/python tools/run_tutorial.py $(filter-out %/README.md,$(wildcard docs/tutorials/*.md)) --skip-missing $(if $(PUT),--put $(PUT))

docs: dev-installed ## build the documentation as a site, build/docs, which opens without a network
	@NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict --quiet
	echo "open build/docs/index.html"

triton: triton-installed ## install tritonclient aside: the tests with it run from then on

check: dev-installed stubs-installed ## ruff, mypy, import walls, stubs equal to the contract
	@status=0
	$(bin)/ruff check || status=1
	$(bin)/ruff format --check || status=1
	$(bin)/mypy || status=1
	$(bin)/lint-imports || status=1
	STUBS_PYTHON=.venv-stubs/bin/python tools/stubs --check || status=1
	exit $$status

stubs: stubs-installed ## generate twinserve/v1 and twinserve/oip from protos/
	@STUBS_PYTHON=.venv-stubs/bin/python tools/stubs

wheel: dev-installed ## build dist/*.tar.gz, and dist/*.whl from it
	@PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(bin)/python -m build

container-dry-run: dev-installed ## run the Dockerfile's steps in a clean folder, no engine needed
	@$(bin)/python tools/dockerfile_dry_run.py --python "$(PYTHON)"

pins: python ## write constraints.txt anew from what the package index offers today
	@tools/pins "$(PYTHON)"

clean: ## remove environments, caches and builds (runs/ stays)
	rm -rf .venv .venv-stubs .venv-triton .venv-tutorials .venv-pins dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- environments ----------------------------------------------------------------------------------

.PHONY: all-installed dev-installed stubs-installed triton-installed
all-installed: $(venv)/.all
dev-installed: $(venv)/.dev
stubs-installed: .venv-stubs/.stamp
triton-installed: .venv-triton/.stamp

python:
	@if [ -z "$(PYTHON)" ]; then
		echo "twinserve: no Python 3.11 or 3.12 here: install one (Debian: apt-get install python3 python3-venv python3-dev) or name it with PYTHON=" >&2
		exit 1
	fi

# What `dev` installs is `all` and more, so its stamp serves for both.
$(venv)/.all: $(pins) | python
	@$(environment) --extra all $(venv)
	touch $@

$(venv)/.dev: $(pins) | python
	@$(environment) --extra dev $(venv)
	touch $@ $(venv)/.all

.venv-stubs/.stamp: tools/stubs-requirements.txt tools/environment.py | python
	@$(environment) --requirements tools/stubs-requirements.txt .venv-stubs
	touch $@

.venv-triton/.stamp: tools/triton-requirements.txt tools/environment.py | python
	@$(environment) --requirements tools/triton-requirements.txt .venv-triton
	touch $@
