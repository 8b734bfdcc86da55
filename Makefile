# The few commands of this project; README.md says when to use which.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL_SCRIPTS := testbed/setup $(addprefix templates/apiserver/apiserver-,flags pod authorizer) .ci/run
LOGINS := $(wildcard src/kubectl_keystone_auth/logins/*.sh)

.PHONY: help venv check types unit audit format testbed test terraform demo bench lock

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

venv: $(VENV)/.done ## the development environment

$(VENV)/.done: requirements-dev.txt
	@echo "==> development environment in $(VENV) (about a minute)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; name one with PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -qq; apt-get install -y -qq python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

check: venv ## ruff, ruff format, shellcheck, pyright, the unit tests, known vulnerabilities of what is shipped
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	$(BIN)/python docs/reference.py --check
	$(BIN)/shellcheck --shell=sh $(LOGINS)
	@$(MAKE) --no-print-directory --jobs=3 --output-sync types unit audit

types: venv
	$(BIN)/pyright

unit: venv
	$(BIN)/pytest tests/unit -m "not slow" --numprocesses 4 --dist worksteal --quiet

audit: venv
	@$(BIN)/python -m testbed.audit

format: venv ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

testbed: venv ## install and build the real parts that the demo and the tests need (root; once)
	testbed/setup

test: check testbed ## every test that can run here (root)
	EVERY_STEP=1 $(BIN)/pytest tests/unit -m slow --numprocesses 4 --dist worksteal --quiet
	$(BIN)/pytest tests/functional tests/testbed tests/machine tests/integration --durations=10

terraform: venv ## have OpenTofu validate and plan deploy/terraform (builds it the first time, about 5 minutes)
	BUILD_OPENTOFU=1 $(BIN)/pytest tests/functional/test_terraform.py

demo: testbed ## the main job from end to end on real parts, told step by step (root)
	$(BIN)/python -m testbed demo

bench: venv ## ours and upstream's k8s-keystone-auth side by side, about 9 minutes
	$(BIN)/python -m benchmarks

lock: venv ## pin the requirements anew
	for f in requirements requirements-authenticator requirements-dev; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --upgrade --no-header --no-emit-index-url \
	    --annotation-style line $$f.in -o $$f.txt; done
