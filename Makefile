# `make help` lists the targets. Everything is installed, started and logged under .local/.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Set-up must be the same on every machine, so pip must not use a local folder of wheels. Without bytecode on disk,
# each process compiles everything that it imports: seconds for each service, job and Ray worker that starts.
unexport PIP_FIND_LINKS PYTHONPATH VIRTUAL_ENV PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

LOCAL := .local
VENV := $(LOCAL)/venv
PY := $(VENV)/bin/python
UV := $(LOCAL)/bootstrap/bin/uv
STAMPS := $(LOCAL)/stamps
PYTHON ?= $(shell command -v python3.11 || command -v python3)
MEMBERS := protos services/common services/feature services/registry services/trainer services/trainer/job services/inference services/monitor sdk deploy/local
SERVICES := feature registry trainer inference monitor

# The name of a stamp contains the hash of its inputs, so that a step runs again only when its inputs change.
hash = $(shell cat $(1) 2>/dev/null | sha256sum | cut -c1-16)
BOOTSTRAP_STAMP := $(STAMPS)/bootstrap-$(call hash,deploy/local/bootstrap.lock)
VENV_STAMP := $(STAMPS)/venv-$(call hash,requirements.lock)
MEMBERS_STAMP := $(STAMPS)/members-$(call hash,requirements.lock $(addsuffix /pyproject.toml,$(MEMBERS)) protos/compile_protos.py)
FETCH_STAMP := $(STAMPS)/fetch-$(call hash,deploy/local/kafka.lock requirements.lock)
PROTOS_STAMP = $(STAMPS)/protos-$(call hash,protos/compile_protos.py $(sort $(shell find protos -name '*.proto')))
TRITON_STAMP := $(STAMPS)/triton-$(call hash,deploy/local/triton.lock)
TRITON_RUNTIME_STAMP := $(STAMPS)/runtime-$(call hash,deploy/local/triton-runtime.lock)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# ---------------------------------------------------------------------------------------------------- set-up
.PHONY: setup
setup: ## install what is missing (needs python3.11, venv, make, git)
	@mkdir -p $(STAMPS)
	@flock $(LOCAL)/setup.lock $(MAKE) --no-print-directory installed

.PHONY: installed
installed: $(BOOTSTRAP_STAMP) $(VENV_STAMP) $(MEMBERS_STAMP) $(PROTOS_STAMP) $(TRITON_STAMP) $(TRITON_RUNTIME_STAMP) $(FETCH_STAMP)
	@:

define stamp
@mkdir -p $(STAMPS) && rm -f $(STAMPS)/$(1)-* && touch $@
endef

$(BOOTSTRAP_STAMP):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is required; $(PYTHON) is another version. Install python3.11 and python3.11-venv, or run make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot create virtual environments. Install python3-venv"; exit 1; }
	@echo "set-up: uv"
	@rm -rf $(LOCAL)/bootstrap && "$(PYTHON)" -m venv $(LOCAL)/bootstrap
	@$(LOCAL)/bootstrap/bin/pip install -q --require-hashes -r deploy/local/bootstrap.lock
	$(call stamp,bootstrap)

$(VENV_STAMP): | $(BOOTSTRAP_STAMP)
	@echo "set-up: Python packages"
	@[ -x $(PY) ] || $(UV) venv -q --python "$(PYTHON)" $(VENV)
	@$(UV) pip sync -q --python $(PY) --require-hashes requirements.lock
	$(call stamp,venv)

$(MEMBERS_STAMP): | $(VENV_STAMP)
	@echo "set-up: the workspace"
	@$(UV) pip install -q --python $(PY) --no-deps --no-build-isolation $(addprefix -e ,$(MEMBERS))
	$(call stamp,members)

$(PROTOS_STAMP): | $(MEMBERS_STAMP)
	@$(PY) protos/compile_protos.py
	$(call stamp,protos)

$(TRITON_STAMP): | $(BOOTSTRAP_STAMP)
	@echo "set-up: Triton"
	@rm -rf $(LOCAL)/triton/server
	@$(UV) pip install -q --python $(PY) --target $(LOCAL)/triton/server --no-deps --require-hashes -r deploy/local/triton.lock
	$(call stamp,triton)

$(TRITON_RUNTIME_STAMP): | $(BOOTSTRAP_STAMP)
	@rm -rf $(LOCAL)/triton/runtime && $(UV) venv -q --python "$(PYTHON)" $(LOCAL)/triton/runtime
	@$(UV) pip sync -q --python $(LOCAL)/triton/runtime/bin/python --require-hashes deploy/local/triton-runtime.lock
	$(call stamp,runtime)

$(FETCH_STAMP): | $(MEMBERS_STAMP)
	@echo "set-up: Kafka, libpython"
	@$(PY) -m flywheel_local fetch
	$(call stamp,fetch)

.PHONY: protos
protos: ## compile the .proto files after a change
	@$(PY) protos/compile_protos.py

# What acceptance tests run in environments of their own: clients of the Open Inference Protocol by other projects, and
# Airflow with the requirements of sdk/flywheel-airflow.
CLIENTS := kserve mlserver airflow
LOCK := $(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 \
	--python-platform x86_64-manylinux_2_35 --no-emit-package flywheel --no-emit-package flywheel-common --no-emit-package flywheel-job \
	--no-emit-package flywheel-protos --no-emit-package flywheel-airflow
.PHONY: lock
lock: $(BOOTSTRAP_STAMP) ## resolve dependencies into requirements.lock files (UPGRADE=1 takes newer versions)
	@$(LOCK) $(if $(UPGRADE),--upgrade) --all-extras --group dev pyproject.toml $(addsuffix /pyproject.toml,$(MEMBERS)) examples/flights/pyproject.toml -o requirements.lock
	@for s in $(SERVICES); do $(LOCK) -c requirements.lock services/$$s/pyproject.toml protos/pyproject.toml -o services/$$s/requirements.lock || exit 1; done
	@$(LOCK) -c requirements.lock --extra run services/trainer/job/pyproject.toml protos/pyproject.toml -o services/trainer/job/requirements.lock
	@$(LOCK) -c requirements.lock services/build.in -o services/build.lock
	@for f in bootstrap triton-runtime; do $(LOCK) --no-config deploy/local/$$f.in -o deploy/local/$$f.lock || exit 1; done
	@for f in peers mlflow evidently; do $(LOCK) --no-config bench/$$f.in -o bench/$$f.lock || exit 1; done
	@for c in $(CLIENTS); do $(LOCK) --no-config tests/acceptance/clients/$$c.in -o tests/acceptance/clients/$$c.lock || exit 1; done
	@$(LOCK) --no-config --no-deps deploy/local/triton.in -o deploy/local/triton.lock
	@$(PY) -m flywheel_local lock

# ---------------------------------------------------------------------------------------------- the platform
# PORT_BASE=8000 moves all ports by 1000, FLYWHEEL_PORT_KAFKA=9092 one port; SCOPE=year replays all flights.
export PORT_BASE SCOPE
LAUNCH := exec $(PY) -m flywheel_local

.PHONY: up down status env run
run: setup ## start a platform, play examples/flights on it, stop it (SCOPE=year replays all flights)
	@$(LAUNCH) run
up: setup ## start the platform in the background (PORT_BASE=8000 for other ports)
	@$(LAUNCH) up
down: ## stop the platform
	@[ ! -x $(PY) ] || $(LAUNCH) down
env: ## print the addresses for clients as shell exports: eval "$(make env)"
	@[ -x $(PY) ] || { echo "nothing is installed: run make up" >&2; exit 1; }; $(LAUNCH) env
status: ## show processes, addresses and log files
	@[ -x $(PY) ] || { echo "nothing is installed: run make up"; exit 1; }; $(LAUNCH) status

# --------------------------------------------------------------------------------------------------- quality
.PHONY: test acceptance check format reference bench bench-peers soak
# Unit, contract, integration and end-to-end tests; must end within 20 minutes on 2 cores. Each of the three test
# processes (WORKERS=1: one) starts its own backends; the files with the longest tests start first. Two processes
# leave the cores idle for a third of the time.
WORKERS := 3
test: setup ## run the test suite against real backends (SUITE=tests/unit, ARGS='-k name')
	@exec $(PY) -m pytest $(or $(SUITE),tests/e2e tests/robustness/services tests/integration tests/contract tests/unit) \
	  $(if $(filter-out 1,$(WORKERS)),-n $(WORKERS) --dist loadfile --no-loadscope-reorder) $(ARGS)

# MLflow is a peer of the benchmarks, and the origin of imports in the acceptance tests.
define install_mlflow
@[ -x $(LOCAL)/peers-mlflow/bin/python ] || $(UV) venv -q --python "$(PYTHON)" $(LOCAL)/peers-mlflow
@$(UV) pip sync -q --python $(LOCAL)/peers-mlflow/bin/python --require-hashes bench/mlflow.lock
endef

# Must end within 60 minutes on 2 cores.
acceptance: setup ## run the commands of the documentation, clients of other projects and the fault tests
	@for c in $(CLIENTS); do \
	  [ -x $(LOCAL)/clients/$$c/bin/python ] || $(UV) venv -q --python "$(PYTHON)" $(LOCAL)/clients/$$c; \
	  $(UV) pip sync -q --python $(LOCAL)/clients/$$c/bin/python --require-hashes tests/acceptance/clients/$$c.lock || exit 1; done
	$(install_mlflow)
	@FLYWHEEL_SOAK_STOPS=$${FLYWHEEL_SOAK_STOPS:-4} exec $(PY) -m pytest -m "not soak" $(or $(SUITE),tests/acceptance tests/robustness) $(ARGS)

# Every tool runs, also after an earlier one failed, so that one run shows all problems.
check: setup ## format, lint, import levels, types, reference pages, proto lint and breaking changes since the last tag (under 30 s)
	@failed=""; try() { "$${@:2}" || failed="$$failed $$1"; }; cd protos && try protos ../$(VENV)/bin/buf lint; cd ..; \
	try format $(VENV)/bin/ruff format --check -q --output-format concise .; \
	try lint $(VENV)/bin/ruff check -q --output-format concise .; \
	try imports $(VENV)/bin/lint-imports --no-logo; \
	try types $(VENV)/bin/mypy --no-error-summary; \
	try reference $(PY) docs/reference/generate.py --check; \
	tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null); \
	[ -z "$$tag" ] || try breaking $(VENV)/bin/buf breaking protos --against ".git#tag=$$tag,subdir=protos"; \
	[ -z "$$failed" ] || { echo "make check failed:$$failed (make format fixes formatting and some lint errors)"; exit 1; }

reference: setup ## generate docs/reference from the code
	@$(PY) docs/reference/generate.py

format: ## format the code and fix lint errors where possible
	@$(VENV)/bin/ruff format -q . && $(VENV)/bin/ruff check -q --fix .

bench: setup ## run benchmarks against limits and peers (SUITE=feature, ARGS='--only join')
	@exec $(PY) -m bench.run $(SUITE) $(ARGS)

bench-peers: setup ## install the peers (in their own environments) and run the benchmarks against them
	@for p in peers evidently; do \
	  [ -x $(LOCAL)/$$p/bin/python ] || $(UV) venv -q --python "$(PYTHON)" $(LOCAL)/$$p; \
	  $(UV) pip sync -q --python $(LOCAL)/$$p/bin/python --require-hashes bench/$$p.lock || exit 1; done
	$(install_mlflow)
	@failed=0; for s in $(or $(SUITE),feature trainer registry monitor); do \
	  case $$s in feature) part=feast;; monitor) part=evidently;; *) part=mlflow;; esac; \
	  $(PY) -m bench.run $$s --only $$part $(ARGS) || failed=1; done; exit $$failed

soak: setup ## run the flights example repeatedly (ROUNDS=5); SUITE=feature kills stream workers over EVENTS=200000, SUITE=postgres stops PostgreSQL STOPS=100 times, SUITE=trainer runs its longest fault tests, SUITE=registry kills the registry KILLS=50 times and uploads 4 GiB, SUITE=monitor kills members of the monitor KILLS=20 times
	@[ "$(SUITE)" != feature ] || { FLYWHEEL_SOAK_EVENTS=$${EVENTS:-200000} exec $(PY) -m pytest -s --show-capture=no tests/robustness/feature/test_killed_materializers.py; }; \
	[ "$(SUITE)" != postgres ] || { FLYWHEEL_SOAK_STOPS=$${STOPS:-100} exec $(PY) -m pytest -s --show-capture=no tests/robustness/services; }; \
	[ "$(SUITE)" != trainer ] || exec $(PY) -m pytest -s --show-capture=no -m soak tests/robustness/trainer; \
	[ "$(SUITE)" != registry ] || { FLYWHEEL_SOAK_KILLS=$${KILLS:-50} FLYWHEEL_SOAK_UPLOAD_MIB=4096 exec $(PY) -m pytest -s --show-capture=no tests/robustness/registry; }; \
	[ "$(SUITE)" != monitor ] || { FLYWHEEL_SOAK_KILLS=$${KILLS:-20} exec $(PY) -m pytest -s --show-capture=no tests/robustness/monitor/test_killed_members.py; }; \
	[ "$(SUITE)" = feature ] || for round in $$(seq $${ROUNDS:-5}); do echo "round $$round"; $(PY) -m flywheel_local run || exit 1; done
