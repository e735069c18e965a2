# Two commands matter: `make demo` and `make test`. Both set up .venv by themselves and reuse what the other installed.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
# Not compiled: most files of most packages are never imported, and the others are compiled then.
PIP    := $(PY) -m pip --disable-pip-version-check install -q --no-compile -c .ci/constraints.txt
# TORCHES: interpreters with other releases of torch, the oldest and the newest supported, for `make gpu-proof`.
# ARCHS, GPU_PYTHON: the GPU and the Python of the machine that `make gpu-libs` is for.
ARCHS      ?= 90
GPU_PYTHON ?= 3.12
# FOLDER: where `make million` keeps its data and runs; else they are removed.
# JOBS: test files that run at a time; each takes one core and up to 2 GB.
JOBS    ?= 2
# RESULTS: where the result files go. DATA: an .npz with arrays train, val, test of (user, item) rows; else some are made up.
RESULTS ?= benchmarks/results
BENCH   := $(PY) -m pytest benchmarks/suite.py -q -s --timeout 3600 --results $(RESULTS) $(if $(DATA),--data $(DATA))
SOURCES := $(shell find csrc tests/sanitize tests/gpu -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.DEFAULT_GOAL := help
.PHONY: help demo test sanitize sanitize-quick gpu-proof gpu-model gpu-check gpu-quick gpu-libs fuzz lint format bench bench-full quality subset experiments experiments-smoke scale million bench-report clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(VENV)/.built  ## Train on MovieLens-100K: teacher, student, both directions; table and report in runs/demo
	$(PY) -m bidistill demo --cache .cache --overwrite

test: $(VENV)/.built $(VENV)/.tools-test  ## Run the tests; the end says what this machine left out, and why
	$(PY) -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

sanitize: $(VENV)/.built $(VENV)/.tools-test  ## The C++ backend under address, undefined-behaviour and thread sanitizers (minutes)
	$(PY) tests/sanitize/run.py

sanitize-quick: $(VENV)/.built $(VENV)/.tools-test  ## A smaller round of that, as .ci/run does it
	$(PY) tests/sanitize/run.py quick

gpu-proof: $(VENV)/.built $(VENV)/.tools-test  ## Compile every GPU kernel for every target, hold it to tests/gpu/derived.md, and run the GPU tests (half an hour; needs nvcc)
	$(PY) setup.py -q build_cuda
	BDKERNELS_PROOF=1 BDKERNELS_CUDA_ARCHS="80 90 100" BDKERNELS_TORCHES="$(TORCHES)" $(PY) -m pytest -q tests/gpu

gpu-model: $(VENV)/.built $(VENV)/.tools-test  ## What the compiled CUDA kernels need, by a model, beside their floors: tests/gpu/model.md (minutes; needs nvcc)
	BDKERNELS_CUDA_ARCHS=90 $(PY) setup.py -q build_cuda --out build/model/libbdkernels_model.so
	$(PY) tests/gpu/model.py build/model/libbdkernels_model.so

gpu-check: $(VENV)/.tools-test  ## On a machine with a CUDA GPU: build, check and time everything; one report in RESULTS/gpu
	$(PY) tests/gpu/check.py --out $(RESULTS)/gpu

gpu-libs: $(VENV)/.base  ## Both libraries for GPUs of ARCHS (90), in bdkernels/lib, to travel to a machine that builds nothing
	BDKERNELS_STRICT_BUILD=1 BDKERNELS_BUILD_CUDA=1 BDKERNELS_CUDA_ARCHS="$(ARCHS)" $(PY) setup.py -q build_kernels
	$(PIP) --target build/gpu-site --upgrade --python-version $(GPU_PYTHON) --only-binary=:all: pydantic tomlkit
	@ls -l bdkernels/lib/*.so
	@echo "Copy bdkernels/lib and build/gpu-site along with the checkout; there: make gpu-quick, or as docs/gpu.md says."

gpu-quick:  ## On a bare machine with a CUDA GPU: checks and times in eight minutes, nothing is installed (docs/gpu.md)
	PYTHONPATH=.:python $(PYTHON) tests/gpu/quick.py

fuzz: $(VENV)/.built $(VENV)/.tools-test  ## Random arguments against dense oracles, FUZZ_EXAMPLES (3000) for each operator (minutes)
	$(PY) tests/fuzz_long.py

lint: $(VENV)/.built $(VENV)/.tools-test $(VENV)/.tools-lint  ## ruff, clang-format, mypy; pyright on programs as users write them
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(SOURCES)
	$(PY) -m mypy
	$(PY) -m mypy --config-file tests/mypy.ini tests
	@mkdir -p build && sed -n '/^```python/,/^```/{/^```/!p}' README.md > build/readme.py
	$(VENV)/bin/basedpyright --pythonpath $(PY)

format: $(VENV)/.tools-lint  ## Rewrite the sources in the house style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(SOURCES)

bench: $(VENV)/.built $(VENV)/.tools-test $(VENV)/.tools-bench  ## Time everything against its peers, about 5 minutes; writes RESULTS/
	$(BENCH) --suite bench

bench-full: $(VENV)/.built $(VENV)/.tools-test $(VENV)/.tools-bench  ## The same with the largest sizes and slowest peers, about 20 minutes
	$(BENCH) --suite full

quality: $(VENV)/.built  ## Distilled against matched control on three seeds (minutes); writes benchmarks/results/
	$(PY) -m benchmarks.quality $(DATA)

subset: $(VENV)/.built  ## Ranks from a subset against exact ones: cost, error, quality (minutes); writes benchmarks/results/
	$(PY) -m benchmarks.subset $(DATA)

experiments: $(VENV)/.built $(VENV)/.tools-baselines  ## Train what is missing of benchmarks/experiments/*.toml (hours; Ctrl-C, and the same again goes on); writes runs/
	for each in $(filter-out %/smoke.toml,$(wildcard benchmarks/experiments/*.toml)); do \
	  $(PY) -m bidistill experiment $$each --cache .cache || exit; done

experiments-smoke: $(VENV)/.built  ## A small experiment on made-up data, anew (two minutes); its report is in build/experiments/smoke
	rm -rf build/experiments/smoke
	$(PY) -m bidistill experiment benchmarks/experiments/smoke.toml

scale: $(VENV)/.built  ## Steps by the catalog, refill by the cores, traffic by the processes (minutes); writes benchmarks/results/
	$(PY) -m benchmarks.scale --results $(RESULTS)/scale.json

million: $(VENV)/.built  ## Generate, plan, train at three sizes up to 1e6 users x 1e6 items (an hour, 10 GB of disk); writes benchmarks/results/
	$(PY) -m benchmarks.million --results $(RESULTS)/million.json $(if $(FOLDER),--folder $(FOLDER))

bench-report: $(VENV)/.built  ## Write the README's tables and plots from benchmarks/results/
	$(PY) -m benchmarks.report

clean:  ## Remove what the build and the runs left (not .venv)
	rm -rf build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(VENV)/.base: pyproject.toml .ci/constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools torch numpy
	$(PIP) --no-build-isolation -e '.[train]'
	touch $@

# The C++ library, built again when its sources change; without a compiler this warns and the reference backend serves.
$(VENV)/.built: $(VENV)/.base setup.py $(SOURCES)
	$(PY) setup.py -q build_kernels
	touch $@

$(VENV)/.tools-%: $(VENV)/.base
	$(PIP) --no-build-isolation -e '.[train,$*]'
	touch $@
