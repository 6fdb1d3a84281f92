# make demo | make test | make lint: bootstrap included; Python 3.11+ with its venv module, git and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENGINE := .engine
LOWEST := .lowest

.PHONY: bench bench-statistics bench-load bench-cache bench-readiness bench-sampler bench-report demo test test-lowest lint test-engine soak clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo         the acceptance suite on the embedded simulated rig, with an HTML report"
	@echo "make test         the plugin's own tests"
	@echo "make test-lowest  the fast tests and a simulated run with the oldest versions that pyproject.toml allows"
	@echo "make lint         ruff, mypy --strict, import contracts"
	@echo "make test-engine  the tests against a real SGLang on the CPU (installs it into $(ENGINE), 1.8 GB)"
	@echo "make bench        every benchmark: benchmarks/results/, docs/benchmarks.md (two quiet cores; bench-statistics, bench-load, ... for one)"
	@echo "make soak         100,000 malformed streams, every fault through the whole suite, repeated clean runs (long)"

$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Try: make demo PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing. Install it: sudo apt-get install -y python3-venv"; exit 1; }
	@test -x $(BIN)/python || { echo "building $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  $$($(BIN)/python -c 'import tomllib; groups = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]; print(*groups["lint"], *groups["test"])')
	@touch $@

demo: $(VENV)/.stamp
	@$(BIN)/python -m pytest acceptance/ --power=250 --rig=simulated

# most tests wait for a simulated rig: four at a time keep two cores busy, the longest first
test: $(VENV)/.stamp-dev
	@$(BIN)/python -m pytest -W error tests --ignore=tests/engine -n 4 --dist loadfile --no-loadscope-reorder

# the lower bounds of pyproject.toml are a promise: their oldest series, in an environment of its own
test-lowest: $(VENV)/.stamp
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check hypothesis markdown-it-py -e . \
	  $$($(BIN)/python -c 'import tomllib; print(*(each.replace(">=", "==") + ".*" for each in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))')
	@$(LOWEST)/bin/python -m pytest tests/record tests/rig tests/judge tests/load tests/plugin tests/gpu tests/report --deselect tests/report/test_report_browser.py
	@$(LOWEST)/bin/python -m pytest acceptance/ --power=250 --rig=simulated -k "not cold"

lint: $(VENV)/.stamp-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test-engine: $(VENV)/.stamp-dev
	@bash tests/engine/engine/install.sh $(ENGINE)
	@SGLANG_ENGINE_REQUIRED=1 $(BIN)/python -m pytest -W error tests/engine

bench: bench-statistics bench-load bench-cache bench-sampler bench-readiness bench-report

# the stopping rule over 20,000 simulated runs a case; losses found and invented
bench-statistics: $(VENV)/.stamp
	@$(BIN)/python benchmarks/statistics/run.py
	@$(BIN)/python benchmarks/regression/run.py
	@$(BIN)/python benchmarks/document.py

# the measuring client beside others (bash benchmarks/load/peers.sh installs them)
bench-load: $(VENV)/.stamp
	@$(BIN)/python benchmarks/load/run.py
	@$(BIN)/python benchmarks/document.py

bench-cache: $(VENV)/.stamp-dev
	@$(BIN)/python benchmarks/cache/snapshot.py -o benchmarks/results/cache-snapshot.json

# how evenly the power sampler samples beside many streams, and what it costs
bench-sampler: $(VENV)/.stamp-dev
	@$(BIN)/python benchmarks/sampler/bench.py

# readiness as it is seen beside the simulator's own moment (10 minutes)
bench-readiness: $(VENV)/.stamp
	@$(BIN)/python benchmarks/readiness/run.py --starts 50 --output benchmarks/results/readiness.json

# how long a report of 2,000 checks takes to open in Chromium (apt-get install chromium)
bench-report: $(VENV)/.stamp-dev
	@$(BIN)/python benchmarks/report/run.py
	@$(BIN)/python benchmarks/document.py

soak: $(VENV)/.stamp-dev
	@$(BIN)/python tests/load/fuzz_streams.py 100000
	@$(BIN)/python tests/soak.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
