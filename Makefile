# The commands of the house; `make` alone lists them.
# Everything is installed into .venv (the project), .venv-stubs (the pinned stub generator),
# .venv-triton (tritonclient, whose pins and descriptors collide with ours), .venv-deploying (helm
# and others that check deploy/) and .venv-audit (pip-audit) inside this folder; a stamp in each says
# that it is up to date, so that a second call costs nothing. The tutorials get a fresh
# .venv-tutorials each time. What comes from npm lies in node_modules beside its package.json.

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
buf := tools/buf/node_modules/.bin/buf
released := protos/released.binpb
pins := pyproject.toml constraints.txt tools/environment.py
environment = $(PYTHON) tools/environment.py --goal $(or $(firstword $(MAKECMDGOALS)),demo) --torch-index "$(TORCH_INDEX)" --cuda "$(CUDA)"

.PHONY: help install demo serve test test-long tutorials docs triton node deploying googleapis check audit buf contract-released stubs pins wheel release-check container-dry-run clean python

help: ## list these commands
	@echo "usage: make COMMAND [PYTHON=python3.12] [TORCH_INDEX=<address>] [CUDA=yes]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

install: all-installed ## install twinserve with all that its users need into .venv
	@echo "type: source $(bin)/activate"

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

node: node-installed ## install the packages of examples/node: the tests with it run from then on

googleapis: build/googleapis/.stamp ## lay google/rpc/*.proto, which the contract imports, in build/googleapis

deploying: deploying-installed ## install helm, hadolint and schemas aside: the tests with them run from then on

check: dev-installed stubs-installed ## ruff, mypy, import walls, stubs equal to the contract, buf, audit
	@status=0
	$(bin)/ruff check || status=1
	$(bin)/ruff format --check || status=1
	$(bin)/mypy || status=1
	$(bin)/lint-imports || status=1
	STUBS_PYTHON=.venv-stubs/bin/python tools/stubs --check || status=1
	if command -v npm >/dev/null || [ "$${CI:-}" = true ]; then
		$(MAKE) --no-print-directory buf || status=1
	else
		echo "buf was left out, for npm is not here" >&2
	fi
	$(MAKE) --no-print-directory audit || status=1
	exit $$status

buf: buf-installed ## lint the contract, and find what would break clients of the released one
	@status=0
	$(buf) lint || status=1
	$(buf) breaking protos --against $(released) || status=1
	exit $$status

contract-released: buf-installed ## keep today's contract as the released one; part of a release
	@$(buf) build protos --exclude-source-info --output $(released)

audit: | python ## look up known weaknesses of the pinned packages; says so where that cannot be
	@$(PYTHON) tools/audit.py

stubs: stubs-installed ## generate twinserve/v1 and twinserve/oip from protos/
	@STUBS_PYTHON=.venv-stubs/bin/python tools/stubs

wheel: dev-installed ## build dist/*.tar.gz, and dist/*.whl from it
	@PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(bin)/python -m build

release-check: dev-installed ## build what is released, twice, install it afresh, serve from it, compare all
	@$(bin)/python tools/release_check.py

container-dry-run: dev-installed ## run the Dockerfile's steps in a clean folder, no engine needed
	@$(bin)/python tools/dockerfile_dry_run.py --python "$(PYTHON)"

pins: python ## write constraints.txt anew from what the package index offers today
	@tools/pins "$(PYTHON)"

clean: ## remove environments, caches and builds (runs/ stays)
	rm -rf .venv .venv-audit .venv-stubs .venv-triton .venv-deploying .venv-tutorials .venv-pins tools/buf/node_modules examples/node/node_modules dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- environments ----------------------------------------------------------------------------------

.PHONY: all-installed dev-installed stubs-installed triton-installed buf-installed node-installed deploying-installed
all-installed: $(venv)/.all
dev-installed: $(venv)/.dev
stubs-installed: .venv-stubs/.stamp
triton-installed: .venv-triton/.stamp
node-installed: examples/node/node_modules/.stamp
buf-installed: tools/buf/node_modules/.stamp build/googleapis/.stamp
deploying-installed: .venv-deploying/.stamp

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

%/node_modules/.stamp: %/package.json %/package-lock.json %/.npmrc
	@if ! command -v npm >/dev/null; then
		echo "twinserve: npm is not here: install Node.js 20 or newer with npm" >&2; exit 1
	fi
	# Not with --prefix: then npm does not read the .npmrc beside the package, and waits for a network.
	(cd $* && npm ci)
	touch $@

# google/rpc/*.proto, which the contract imports.
build/googleapis/.stamp: $(venv)/.dev
	@mkdir -p $(@D)/google/rpc
	cp "$$($(bin)/python -c 'import google.rpc; print(google.rpc.__path__[0])')"/*.proto $(@D)/google/rpc
	touch $@

.venv-deploying/.stamp: tools/deploying-requirements.txt tools/fetch_helm.py tools/environment.py | python
	@$(environment) --requirements tools/deploying-requirements.txt .venv-deploying
	.venv-deploying/bin/python tools/fetch_helm.py .venv-deploying
	touch $@
