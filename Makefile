# tenfold: `make demo` measures the example shop, `make test` runs every test.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
UV     := $(shell command -v uv 2>/dev/null)

.PHONY: demo test test-sqlalchemy-2.0 lint types docs pictures bench format clean
.DELETE_ON_ERROR:

# $(call install,STAMP,LABEL,SECONDS,ARGUMENTS): one line about it, and everything the installer said if it fails.
define install
	@start=$$(date +%s); test ! -t 1 || printf '… %-13s about %s s' '$(2)' '$(3)'; \
	{ test -x $(BIN)/python || $(if $(UV),$(UV) venv --python $(PYTHON),$(PYTHON) -m venv) $(VENV); } >$(VENV).log 2>&1 && \
	$(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check) \
	  $(4) >>$(VENV).log 2>&1 || { test ! -t 1 || echo; cat $(VENV).log >&2; exit 1; }; \
	test ! -t 1 || printf '\r'; printf '✔ %-72s%6s\n' '$(2)' "$$(($$(date +%s) - start)) s"; \
	mv $(VENV).log $(1)
endef

define check_python
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tenfold needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
endef

# The stamps depend on the pins: a changed pin or extra installs again. The demo needs the least.
$(VENV)/.installed-demo: requirements.txt pyproject.toml
	$(check_python)
	$(call install,$@,environment,30,-c requirements.txt -e '.[demo]')

$(VENV)/.installed: requirements.txt pyproject.toml
	$(check_python)
	$(call install,$@,environment,40,-c requirements.txt -e '.[dev]')
	@touch $(VENV)/.installed-demo

$(VENV)/.installed-bench: $(VENV)/.installed
	$(call install,$@,peers,10,-c requirements.txt -e '.[bench]')

$(VENV)/.installed-docs: $(VENV)/.installed requirements-docs.txt
	$(call install,$@,docs tools,10,-c requirements.txt -r requirements-docs.txt -e '.[docs]')

demo: $(VENV)/.installed-demo
	@$(BIN)/tenfold measure --settings examples/tenfold.toml

# $(call run_tests,MARKERS,OPTIONS): what fails beside other tests runs once more by itself, and both verdicts are
# printed. A full machine may be to blame once; a fault fails twice.
define run_tests
	$(BIN)/python -m pytest -m $(1) $(2) || { status=$$?; [ $$status = 1 ] || exit $$status; \
	  echo 'Once more, by themselves, the tests that failed:'; \
	  $(BIN)/python -m pytest -m $(1) --last-failed --last-failed-no-failures none --maxfail=3 -v; }
endef

# Several processes, because most tests wait; then what measures, by itself.
test: $(VENV)/.installed
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(call run_tests,"not slow and not alone",-n 2 --dist loadfile)
	$(call run_tests,"not slow and alone",)
endif

# With the oldest SQLAlchemy that is supported, in an environment of its own.
test-sqlalchemy-2.0: OLD := $(VENV)-sqlalchemy-2.0
test-sqlalchemy-2.0:
	$(MAKE) VENV=$(OLD) $(OLD)/.installed
	$(if $(UV),$(UV) pip install --python $(OLD)/bin/python,$(OLD)/bin/python -m pip install --disable-pip-version-check -q) \
	  'sqlalchemy==2.0.44'
	$(OLD)/bin/python -m pytest -m "not slow and not alone" -n 2 --dist loadfile tests/database tests/sharding \
	  tests/measure/probe tests/adoption/test_probe_of_shapes.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	@$(BIN)/python -m docs.tools.site

# From the report of the last `make demo`.
pictures: $(VENV)/.installed-demo
	@$(BIN)/python -m docs.tools.pictures

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench
	@for b in benchmarks/[a-z]*.py; do $(BIN)/python -m benchmarks.$$(basename $$b .py) $(ARGS) || exit 1; done

clean:
	rm -rf $(VENV) .tenfold examples/.tenfold build site
