# Two commands do everything on a fresh machine with Python >= 3.11, git and make:
#   make demo    runs the main job on real input and says where to look
#   make test    passes the whole suite

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/quickstart
SUITE := -n 2 --dist worksteal -m "not long"
DEVICE ?= cuda
OUT ?= build/gpu

# Without its bytecode torch takes three times as long to import, in each of the processes that the tests start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check bench gpu crash pictures site texts tools clean

demo: .venv/.installed
	$(BIN)/python -m training.distill_kd --config configs/quickstart.yaml --output-dir $(RUN)
	$(BIN)/crashproof status $(RUN)
	@echo
	@echo "Look at $(RUN)/progress/progress.json, or kill the next run and start it again:"
	@echo "  $(BIN)/python -m training.distill_kd --config configs/quickstart.yaml --output-dir runs/mine"

# The crash tests run apart: they start hundreds of processes, and measuring coverage in each would slow them down. The
# architecture tests are in `check`.
test: .venv/.installed tools
	$(BIN)/python -m pytest $(SUITE) --ignore tests/crash --ignore tests/architecture --cov --cov-report=
	$(BIN)/coverage report --fail-under 100 --include 'src/crashproof/disk/*,src/crashproof/rules/*'
	$(BIN)/coverage report --fail-under 95 --omit '*/distillation/*,*/pytorch/*,*/cli/*'
	$(BIN)/python -m pytest $(SUITE) tests/crash

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/architecture

bench: .venv/.installed
	$(BIN)/python -m benchmarks.run

# What only a GPU shows: all checks at once, in at most 8 minutes; DEVICE=cpu runs the same code small. Table, JSON and
# logs are in OUT; on a GPU it also writes benchmarks/RESULTS_GPU.md.
gpu: .venv/.installed
	$(BIN)/python -m benchmarks.device --device $(DEVICE) --out $(OUT)

# Long crash tests with fresh seeds; each prints its own. SEED=n repeats one, ROUNDS=n sets how many.
crash: .venv/.installed
	$(BIN)/python -m pytest -s -m "long" --timeout 1800 tests/crash

# The pictures of the documents, taken by the tests from real runs.
pictures: .venv/.installed tools
	CRASHPROOF_PICTURES=$(CURDIR)/docs/pictures $(BIN)/python -m pytest -q tests/crashproof/dashboard/test_page.py

# The documents as a site, in build/site; a warning is an error.
site: .venv/.installed
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs build/site
	@echo "build/site/index.html"

# Every text that a person reads (help, errors, log lines), in build/texts.txt, to be read aloud.
texts: .venv/.installed
	@mkdir -p build
	$(BIN)/python tests/architecture/texts.py > build/texts.txt
	@echo "build/texts.txt"

tools:
	@.ci/install-tools

clean:
	rm -rf .venv build dist runs .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint constraints.txt --editable '.[distillation,dev]'
	touch $@
