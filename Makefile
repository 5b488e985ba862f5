# Every goal sets itself up in .venv: `make demo`, `make test` and `make check` work in a fresh clone.
# A stamp per extra (.venv/.demo, .venv/.test, .venv/.dev) is renewed only when the package's definition changes.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
TESTS  ?=
BENCH  ?=

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test check bench clean
.DELETE_ON_ERROR:
.SECONDARY:

demo: $(VENV)/.demo
	$(PY) examples/digits.py

# Emulated shaders run in processes of their own: they are native code, some of it illegal on purpose.
SUITE = $(PY) -m pytest -n 2 $(or $(TESTS),--ignore=tests/metal) $(if $(TESTS),,&& $(PY) -m pytest -n 2 tests/metal)

test: $(VENV)/.test
	$(SUITE)

check: $(VENV)/.dev $(VENV)/.typing
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(SUITE)

bench: $(VENV)/.demo .venv-peers/.ready
	$(VENV)/bin/mlxir bench --peers-python .venv-peers/bin/python $(BENCH)

clean:
	rm -rf $(VENV) .venv-peers build out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# pip is the last thing that venv installs, so an interrupted set-up is not taken for a finished one.
$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mlxir needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.demo $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: pyproject.toml setup.py | $(VENV)/bin/pip
	$(PY) -m pip install --quiet --editable '.[$*]'
	touch $@

# mypy cannot see through an editable install's import hook: show it the four folders as the one package they install as.
.PHONY: $(VENV)/.typing
$(VENV)/.typing: | $(VENV)/bin/pip
	rm -rf $(VENV)/typing && mkdir -p $(VENV)/typing/mlxir
	ln -s $(CURDIR)/api/* $(CURDIR)/compiler $(CURDIR)/dialects $(CURDIR)/runtime $(VENV)/typing/mlxir/

.venv-peers/.ready: benchmarks/setup_peers.sh benchmarks/peers.txt
	PYTHON=$(PYTHON) bash benchmarks/setup_peers.sh .venv-peers
	touch $@
