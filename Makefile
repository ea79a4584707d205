# Everything here sets itself up: on a machine with Python 3.11 or later, type `make demo` or `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# No telemetry is sent.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# The tests start many processes, which would all compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test processes browser pictures docs check bench fresh-install kills batch-kills cache-kills map-kills cluster parents format clean

demo: $(READY)  ## run the main job offline and show the result
	$(BIN)/pollux-flows demo

# Three workers, on two cores as well: many tests wait for a clock, a lease or another process; a fourth would have a
# fourth Prefect server to keep busy. In the order that tests/conftest.py gives the files: reordered, those with one
# long test would come last, with nothing beside them.
PYTEST := $(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
KILLED := $(wildcard tests/*/test_killed*.py)
EXAMPLES := tests/prefect/test_docs_examples.py
test: $(READY)  ## run the tests, but for those of `make processes`, `make docs` and `make browser`
	$(PYTEST) --ignore tests/processes --ignore-glob '*/test_killed*.py' --ignore $(EXAMPLES) --ignore tests/browser

processes: $(READY)  ## serve flows, cancel and retry their runs, kill processes, use a cluster
	$(PYTEST) tests/processes $(filter-out tests/processes/%,$(KILLED))

browser: $(READY)  ## use the UI as a person does, in Chromium, and keep screenshots in browser-shots/
	$(BIN)/pytest -q --timeout 300 tests/browser

pictures: browser  ## take the pictures of the documents anew
	cd docs/images && for picture in *.png; do cp ../../browser-shots/$$picture .; done

docs: $(READY)  ## run the examples in the documents, and build the site, in site/
	$(BIN)/pytest $(EXAMPLES)
	$(BIN)/sphinx-build -q -W --keep-going docs site

check: $(READY)  ## lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## measure what the documents state
	$(BIN)/python -m benchmarks

fresh-install:  ## what a newcomer gets: the wheel without constraints, its demo, and a scheduled run
	PYTHON=$(PYTHON) .ci/fresh-install

kills: $(READY)  ## kill a run of 1,000 prompts at fifty moments
	TEST_KILLS=50 TEST_PROMPTS=1000 $(BIN)/pytest -q tests/pipeline/test_killed_run.py

batch-kills: $(READY)  ## kill processes that submit or collect a batch, two hundred times
	TEST_BATCH_KILLS=200 $(BIN)/pytest -q tests/processes/test_killed_jobs.py tests/deferred/test_killed_defer.py

cache-kills: $(READY)  ## kill the creator of a cache at a hundred moments
	TEST_CACHE_KILLS=100 $(BIN)/pytest -q --timeout 3600 tests/caching/test_killed_creation.py tests/processes/test_killed_caches.py

map-kills: $(READY)  ## kill a run over a table of 2,000 rows at twenty moments
	TEST_MAP_KILLS=20 TEST_MAP_ROWS=2000 $(BIN)/pytest -q tests/processes/test_killed_map.py

cluster: $(READY)  ## map 5,000 rows on two Dask workers, and again while one of them is killed
	TEST_CLUSTER_ROWS=5000 $(BIN)/pytest -q tests/processes/test_map_cluster.py

parents: $(READY)  ## retry parents of all shapes at random moments, two hundred times
	TEST_PARENTS=200 $(BIN)/pytest -q --timeout 3600 tests/processes/test_retried_parents.py

format: $(READY)  ## write the code the way `make check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pollux_flows needs Python 3.11 or later; $(PYTHON) is older. Type: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing. On Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev,docs]'
	@touch $@
