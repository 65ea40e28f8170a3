# What a newcomer, a developer and CI run. Everything is installed into .venv from pip's own configuration;
# constraints.txt fixes the versions. A target that has installed what it needs does not install again until
# pyproject.toml or constraints.txt changes.
#
#   make demo          the main job on the embedded task and zoo, offline after the install
#   make test          the whole suite
#   make lint          ruff, mypy --strict, import-linter
#   make docs          the documentation, into site/
#   make bench DATA=d  every benchmark; d holds banking77/, hwu64/ and snips/ (train.csv and test.csv: text,label)
#   make clean         removes .venv, site/ and the tools' caches; runs/ stays
#
# Another Python:      make clean, then make demo PYTHON=python3.13

PYTHON ?=
VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
DEMO   := runs/demo
DATA   ?=

# Read by pip for the packages and, in isolation, for the build backend (pip 25.3 and later read the second for that).
# A relative path, because pip splits these at white space and a checkout may lie in a folder with a space.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

INPUTS := pyproject.toml constraints.txt
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))

.PHONY: demo test lint docs bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/regraft reuse builtin:pydoc --zoo builtin:minilm --budget 2m --out "$(DEMO)"

# The report in a browser (tests/browser), a database server (tests/server) and the README's commands for real (tests/newcomer) need more than the
# package registry and a minute: .ci/run runs them.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --ignore=tests/browser --ignore=tests/server --ignore=tests/newcomer $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

docs: $(VENV)/.docs
	$(BIN)/zensical build --strict --clean

bench: $(VENV)/.bench
	@test -n "$(DATA)" || { echo "make bench needs the data: make bench DATA=folder (README.md, Benchmarks)." >&2; exit 2; }
	$(PY) benchmarks/classification.py --data "$(DATA)"
	$(PY) benchmarks/features.py --data "$(DATA)"
	$(PY) benchmarks/budget.py --data "$(DATA)"
	$(PY) benchmarks/kill.py
	$(PY) benchmarks/summary.py --write

clean:
	rm -rf "$(VENV)" site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.created:
	@set -e; \
	if [ -n "$(PYTHON)" ]; then set -- "$(PYTHON)"; \
	else set -- python3 python3.14 python3.13 python3.12 python3.11 python; fi; \
	for candidate in "$$@"; do \
	  if "$$candidate" -c '$(USABLE)' >/dev/null 2>&1; then \
	    echo "Making $(VENV) with $$("$$candidate" --version) ($$candidate)"; \
	    "$$candidate" -m venv --clear "$(VENV)"; touch $@; exit 0; \
	  fi; \
	done; \
	echo "No Python 3.11 to 3.14 with its venv module found (tried: $$*)." >&2; \
	echo "Install one (on Debian and Ubuntu the package python3-venv belongs to it)," >&2; \
	echo "or say which to take: make demo PYTHON=/path/to/python3" >&2; \
	exit 1

# The suite's set-up holds all that the demo's does.
$(VENV)/.demo: $(VENV)/.created $(INPUTS)
	$(PY) -m pip install -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.created $(INPUTS)
	$(PY) -m pip install -e ".[dev]"
	@touch $(VENV)/.demo $@

$(VENV)/.docs $(VENV)/.browser $(VENV)/.bench $(VENV)/.postgres: $(VENV)/.%: $(VENV)/.dev
	$(PY) -m pip install -e ".[$*]"
	@touch $@
