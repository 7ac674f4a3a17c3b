# Two commands do everything on a fresh machine: `make run` and `make test`.
.PHONY: run test setup serve bench lock check

PYTHON ?= python3
# uv does not read where pip is told to look.
FIND_LINKS := $(addprefix --find-links ,$(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)))
SOURCE ?=
# Without compiled modules every start of Python would compile torch, MLflow and Prefect again.
unexport PYTHONDONTWRITEBYTECODE

run: setup
	.venv/bin/meterwatch run $(SOURCE)

test: setup check
	.venv/bin/pytest

check: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/vulture

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet uv==0.13.8
	.venv/bin/uv pip install --quiet --python .venv/bin/python $(FIND_LINKS) -r requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	touch $@

serve: setup
	.venv/bin/meterwatch serve

bench: setup
	.venv/bin/python -m tests.benchmarks

# Write the lock anew after a change of pyproject.toml. Torch stands there without its build and
# what only a CUDA build needs: each machine takes the build that it finds.
lock:
	.venv/bin/uv pip compile --quiet $(FIND_LINKS) --no-annotate --no-header --group dev pyproject.toml -o requirements.lock
	sed -i -E '/^(cuda|nvidia|triton)/d; s/\+cpu$$//' requirements.lock
