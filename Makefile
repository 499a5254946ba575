# `make demo` and `make test` set up everything they need; `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/demo

BIN := $(VENV)/bin
# Of thousands of installed modules few are ever imported: they are compiled then, and kept compiled.
INSTALL := $(BIN)/python -m pip install --no-compile -c constraints.txt
export PYTHONDONTWRITEBYTECODE :=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo dev test lint fuzz audit pins clean

help: ## list these targets
	@echo "usage: make TARGET [PYTHON=python3.12] [VENV=.venv] [RUN=runs/demo]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-6s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.train ## sort headlines at once, then fetch real newswire, train, evaluate, classify
	$(BIN)/newsdesk predict ag-news \
	  "shares fall after the bank reports a quarterly loss" \
	  "striker scores twice as united win the cup final" \
	  "new software flaw lets hackers take over computers"
	$(BIN)/newsdesk train --recipe quick --out $(RUN) --overwrite
	$(BIN)/newsdesk evaluate $(RUN) --data reuters-r8 --split test --baseline
	$(BIN)/newsdesk predict $(RUN) \
	  "opec ministers agree to cut crude oil output after prices fall" \
	  "bank of japan buys dollars to slow the rise of the yen" \
	  "striking seamen leave cargo vessels waiting outside the ports"
	@echo "$$DEMO_ENDS"

define DEMO_ENDS

Run saved to $(RUN): its adapter (PEFT's files), recipe, log and figures.
Try next, with headlines and rows of your own:

  $(BIN)/newsdesk predict $(RUN) "grain shipments to egypt resume"
  $(BIN)/newsdesk data check news.csv
  $(BIN)/newsdesk train --recipe quick --data news.csv --out runs/news
  $(BIN)/newsdesk predict runs/news --input unread.csv --output sorted.csv

news.csv needs a column of texts and one of classes, such as text and label.
endef
export DEMO_ENDS

dev: $(VENV)/.test ## set up the environment that tests and pre-commit use

# A file's tests share what they build; tiny models are computed fastest by one thread each. Some tests wait
# for processes and clocks: three at a time keep two cores busy.
test: lint ## all checks: style, types, tests with branch coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-fail-under=90

lint: $(VENV)/.test ## style and types alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

TRIALS ?= 10000
SEED   ?= 0
fuzz: $(VENV)/.test ## give TRIALS mutated files to every verb, beginning with SEED
	TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(BIN)/python tests/hostile/fuzz.py --trials $(TRIALS) --seed $(SEED)

ADVISORIES := build/audit/advisories.json
audit: ## look up published vulnerabilities of the versions in constraints.txt
	@rm -rf build/audit && mkdir -p build/audit && $(PYTHON) -m venv build/audit/venv
	@build/audit/venv/bin/python -m pip install -q pip-audit >build/audit/log 2>&1 \
	  && build/audit/venv/bin/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off \
	  --timeout 15 -f json -o $(ADVISORIES) 2>build/audit/log; code=$$?; \
	if grep -qs '"vulns"' $(ADVISORIES); then cat build/audit/log; exit $$code; fi; \
	echo "no index of advisories can be reached from here: nothing was audited (build/audit/log)"

pins: ## resolve constraints.txt anew; torch stays at the version it names
	rm -rf build/pins && mkdir -p build/pins && $(PYTHON) -m venv build/pins/venv
	grep '^torch==' constraints.txt > build/pins/torch.txt
	build/pins/venv/bin/python -m pip install -c build/pins/torch.txt -e '.[train,parquet,dev]'
	grep '^#' constraints.txt > build/pins/constraints.txt
	build/pins/venv/bin/python -m pip freeze --all --exclude pip --exclude newsdesk > build/pins/frozen.txt
	sed 's/+[a-z0-9.]*$$//' build/pins/frozen.txt >> build/pins/constraints.txt
	mv build/pins/constraints.txt constraints.txt && rm -rf build/pins

clean: ## remove the environment and all caches; runs stay
	rm -rf $(VENV) build dist .coverage* .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.train: EXTRAS := train
$(VENV)/.test: EXTRAS := train,parquet,dev
$(VENV)/.train $(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing newsdesk[$(EXTRAS)] into $(VENV); the largest part is torch"
	$(INSTALL) -e '.[$(EXTRAS)]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: newsdesk needs Python 3.11 or newer"; \
	  echo "found: $$($(PYTHON) --version 2>&1)"; \
	  echo "fix:   name another one, for example  make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; } >&2
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
