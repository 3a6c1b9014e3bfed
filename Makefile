# The commands of the README. GNU make 3.81 or newer; Linux and macOS.
#   make run ARGS="--port 8080"      make test ARGS="-k upstream"      make test PYTHON=python3.13

PYTHON ?= python3
VENV   ?= .venv
python := $(VENV)/bin/python
stubs  := $(patsubst openbr/_native/%.pyi,openbr._native.%,$(wildcard openbr/_native/*.pyi))

.PHONY: help run test test-pure test-debug check build bench bench-check docs clean
.DEFAULT_GOAL := help

help:
	@echo "make run        install what is missing, start the gateway (ARGS=... are its flags)"
	@echo "make test       install what tests need, run them all (ARGS=... go to pytest)"
	@echo "make test-pure  the same tests without any compiled module"
	@echo "make test-debug the tests of the native modules, compiled with every check"
	@echo "make check      ruff, mypy --strict, stubtest, translations"
	@echo "make build      the wheel, in dist/"
	@echo "make bench      measure, and compare with other ways (ARGS=... go to bench/run.py)"
	@echo "make bench-check  the native layer's ratios beside bench/baseline.json, half a minute"
	@echo "make docs       write docs/configuration.md anew from the code"
	@echo "make clean      remove all that these commands made in this folder"

# One stamp for openbr itself, one for each extra. They go stale with what they are made from.
$(VENV)/openbr.stamp: pyproject.toml setup.py tools/venv.py $(wildcard openbr/_native/*.pyx openbr/_native/*.pxd)
	@$(PYTHON) tools/venv.py $(VENV)
	@touch $@

$(VENV)/%.stamp: $(VENV)/openbr.stamp pyproject.toml
	@$(PYTHON) tools/venv.py $(VENV) $*
	@touch $@

# Fetched, not installed. Without a network openbr still runs, and its pages say what is missing.
assets := $(python) tools/assets.py || echo "openbr: going on without the browser-side files" >&2
model  := $(python) -m openbr models pull || echo "openbr: going on without the local model" >&2

run: $(VENV)/openbr.stamp
	@$(assets)
	@$(model)
	@exec $(python) -m openbr run $(ARGS)

# The tests fetch the local model themselves, into .cache. test-pure runs in a copy without compiled
# modules and shares that model. Where openbr can be compiled, `test` fails when it was not.
test: run_tests = OPENBR_REQUIRE_NATIVE=$$(cat $(VENV)/can-compile) $(python)
test-pure: run_tests = $(python) tools/pure.py build/pure
test test-pure: $(VENV)/openbr.stamp $(VENV)/test.stamp
	@$(assets)
	@browser=$$($(python) tools/browser.py --install) && \
	OPENBR_TEST_MODELS="$${OPENBR_TEST_MODELS:-$(CURDIR)/.cache/openbr-test-models}" \
	OPENBR_BROWSER="$$browser" $(run_tests) -m pytest $(ARGS)

test-debug: $(VENV)/openbr.stamp $(VENV)/test.stamp
	@if [ -s $(VENV)/can-compile ]; then \
	$(python) tools/debug.py build/debug -m pytest tests/native $(ARGS); \
	else echo "openbr: nothing can be compiled here, so there is nothing to debug"; fi

check: $(VENV)/openbr.stamp $(VENV)/test.stamp
	$(python) -m ruff format --check
	$(python) -m ruff check
	$(python) -m mypy
	$(python) tools/texts.py check
	@if [ -s $(VENV)/can-compile ]; then set -x; \
	$(python) -m mypy.stubtest --ignore-missing-stub $(stubs); \
	else echo "openbr: nothing compiled here, so no stub was checked"; fi

build: $(VENV)/openbr.stamp $(VENV)/test.stamp
	@$(assets)
	$(python) -m build --wheel --no-isolation

bench: $(VENV)/openbr.stamp $(VENV)/bench.stamp
	@$(python) bench/run.py $(ARGS)

bench-check: $(VENV)/openbr.stamp $(VENV)/bench.stamp
	@$(python) bench/run.py --check --quick --only lru arena pool json hash

docs: $(VENV)/openbr.stamp
	@$(python) tools/reference.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .cache
	rm -f openbr/_native/*.so static/vendor/*.js static/vendor/*.css
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
