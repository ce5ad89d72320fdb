# Each target does all its own set-up, in .venv, from a machine that has python3 (3.11 or newer) and make.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
MESSAGES := 1000000
ROUNDS := 100000
PROGRAMS := 10000

COMPILED := build/compiled/.ready
SOURCES := $(shell find dsm directory nodes tests benchmarks examples -type f -not -name '*.pyc' 2>/dev/null)
# Not those of the command line and of what takes the place of CPython's own: they reach nothing that others do not.
COMPILED_TESTS := $(patsubst %,--ignore-glob='*/test_%.py',run* cpython_locks shared_memory other_libraries ls_and_rm) \
    tests/machines tests/system tests/test_pagetable.py tests/test_poller.py tests/test_session.py \
    tests/test_stream.py tests/test_wire.py

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

demo: $(READY) ## denoise a photograph on two nodes; the pictures go to demo-output/
	$(PY) -m dsm demo --output demo-output

test: $(READY) ## all tests, on every core (ARGS="-k barrier" adds to the command)
	$(PY) -m pytest -n auto $(ARGS)

test-compiled: $(COMPILED) ## the tests of what is compiled for an installation, compiled (setup.py); ARGS as for test
	cd $(dir $(COMPILED)) && $(abspath $(PY)) -m pytest -n auto $(or $(ARGS),$(COMPILED_TESTS))

test-cluster: $(READY) ## the cluster of docker-compose.yml under kill, pause, restart and partition (installs Docker, if need be)
	BASE_IMAGE=$$(deploy/prepare) && export BASE_IMAGE && $(PY) -m pytest deploy $(ARGS)

chaos: $(READY) ## random faults against a real cluster for MINUTES=10 (SEED=1, ARGS="--nodes 5")
	PYTHONPATH=.:tests/system $(PY) tests/chaos/chaos.py --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED)) $(ARGS)

model: $(READY) ## explore every interleaving of the protocol (ARGS="--quick", "--only threads", "--json")
	PYTHONPATH=tests:tests/machines $(PY) -m model $(ARGS)

lint: $(READY) ## ruff (rules and format) and mypy --strict
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

fuzz: $(READY) ## mutated, random and lying messages for every decoder, machine and socket (MESSAGES=1000000 SEED=1)
	PYTHONPATH=.:tests/machines:tests/system $(PY) tests/fuzz/fuzzing.py --messages $(MESSAGES) $(if $(SEED),--seed $(SEED)) $(ARGS)

simulate: $(READY) ## SEEDS=1000 simulated clusters with faults, seeds of their own each time (ARGS="--seed 7": one again)
	$(PY) -m tests.sim --seeds $(or $(SEEDS),1000) $(ARGS)

bench: $(COMPILED) ## measure everything beside floors and peers, write docs/benchmarks.md (ARGS="latency --quick": a part, only printed)
	PYTHONSAFEPATH=1 PYTHONPATH=$(abspath $(dir $(COMPILED))) \
	    $(PY) -m benchmarks $(or $(ARGS),--report docs --json docs/benchmarks/results.json)

replay: $(READY) ## what reading ahead makes of a pattern of accesses, without a cluster (ARGS="FILE", "--pattern stencil", "--json")
	$(PY) -m benchmarks.replay $(ARGS)

peers: $(READY) ## install what `make bench` compares dsm with: redis, ray, MPI
	$(PY) -m pip --require-virtualenv install --quiet --disable-pip-version-check --constraint constraints.txt \
	    --no-build-isolation --editable '.[demo,dev,peers]'
	@$(need_redis)

litmus: $(READY) ## litmus tests on real clusters, and how often each outcome came (ROUNDS=100000 of each, ARGS="--json", "IRIW")
	PYTHONPATH=.:tests/system $(PY) tests/litmus/campaign.py --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

histories: $(READY) ## every access of random programs on real clusters is checked (PROGRAMS=10000 on each, ARGS="--json")
	PYTHONPATH=.:tests/system $(PY) tests/history/record.py --programs $(PROGRAMS) $(if $(SEED),--seed $(SEED)) $(ARGS)

clean: ## remove everything that make made
	rm -rf $(VENV) demo-output build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A copy of the tree in which the way of a fault is compiled, as an installation has it.
$(COMPILED): $(READY) $(SOURCES) setup.py pyproject.toml
	@echo "compiling the way of a fault"
	@rm -rf $(dir $@) && mkdir -p $(dir $@)
	@cp -r dsm directory nodes tests benchmarks docs $(wildcard examples) setup.py pyproject.toml README.md LICENSE $(dir $@)
	@cd $(dir $@) && $(abspath $(PY)) setup.py --quiet build_ext --inplace >build.log 2>&1 \
	    && $(abspath $(PY)) -c 'from dsm import doctor; assert doctor.is_compiled()' || { cat build.log; exit 1; }
	@touch $@

# Installed again whenever what is to be installed has changed. A .venv that is broken or half made is made anew.
$(READY): pyproject.toml constraints.txt
	@$(PY) -c '$(is_venv)' 2>/dev/null || { $(find_python); $(need_venv); echo "setting up $(VENV)"; "$$python" -m venv --clear $(VENV); }
	@$(PY) -m pip --require-virtualenv install --quiet --disable-pip-version-check --constraint constraints.txt setuptools
	@$(PY) -m pip --require-virtualenv install --quiet --disable-pip-version-check --constraint constraints.txt \
	    --no-build-isolation --editable '.[demo,dev]'
	@touch $@

is_venv := import pip, sys; sys.exit(sys.prefix == sys.base_prefix)

# Sets $python to the first Python that is new enough. A name may exist and still not run (version managers).
define find_python
python=; \
for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
    echo "dsm needs Python 3.11 or newer. Found: $$(python3 --version 2>&1 || echo 'no python3')." >&2; \
    echo "Install one (for example: apt-get install python3.12 python3.12-venv), or name one: make PYTHON=/path/to/python3.12" >&2; \
    exit 1; \
fi
endef

# Debian and Ubuntu ship python3 without ensurepip, which venv needs.
define need_venv
if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
    package=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
        echo "installing $$package"; \
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$$package" >/dev/null || exit 1; \
    else \
        echo "Python's venv module is incomplete here. Run: sudo apt-get install $$package" >&2; \
        exit 1; \
    fi; \
fi
endef

# Installed without being started (what policy-rc.d is for): the benchmark starts a server of its own.
define need_redis
if ! command -v redis-server >/dev/null; then \
    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
        echo "installing redis-server"; \
        policy=/usr/sbin/policy-rc.d; \
        if [ ! -e $$policy ]; then \
            trap "rm $$policy" EXIT; \
            printf '#!/bin/sh\nexit 101\n' >$$policy && chmod +x $$policy || exit 1; \
        fi; \
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server >/dev/null || exit 1; \
    else \
        echo "redis-server is not here. Run: sudo apt-get install redis-server" >&2; \
        exit 1; \
    fi; \
fi
endef

.PHONY: help demo test test-compiled model lint fuzz simulate peers replay litmus histories bench clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
