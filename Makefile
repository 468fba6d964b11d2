# make run       generate, evaluate and compare with the shipped weights (installs first); writes to results/run and results/run_external
# make test      run the tests (installs first)
# make pipeline  train everything from the embedded data, then generate, evaluate and compare
# make loop      generate, judge, compute the best by DFT and learn from it, ROUNDS times; writes to results/run/loop
# make data      rebuild the embedded data
# make lint | make bench | make clean
# make run TORCH=cpu|cuda chooses the build of PyTorch that the first call installs; without it, cuda where a GPU is seen
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# The build of PyTorch: cpu or cuda (Linux; the ordinary package there, with CUDA libraries of several GB).
TORCH ?= $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
# Free space that an installation needs: the environment (2 GB, with CUDA 6 GB) and the downloaded packages.
MIN_DISK_MB_cpu := 3000
MIN_DISK_MB_cuda := 9000
MIN_DISK_MB = $(MIN_DISK_MB_$(TORCH))
# Where it cannot be reached, the ordinary package is taken.
TORCH_INDEX_cpu := https://download.pytorch.org/whl/cpu
REACHABLE = $(PYTHON) -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)' $(TORCH_INDEX_$(TORCH))/torch/
TEST_PROCESSES ?= auto
# Rounds of the design loop.
ROUNDS ?= 3
# Where runs go; git ignores these folders. results/ and results_external/ themselves hold the committed run.
OUT ?= results/run
EXTERNAL_OUT ?= results/run_external
FOLDERS := run.output_dir=$(OUT) external.output_dir=$(EXTERNAL_OUT)
WEIGHTS := dimenet.checkpoint=weights/dimenet.pth denoiser.checkpoint=weights/denoiser.pth
# The potential relaxes H at two sites, and not where the sheet is far from stable; "make pipeline" asks for what config.yaml says.
QUICK := evaluation.potential_h_sites=2 evaluation.potential_h_max_e_hull_ev=0.2
UNGUIDED := generation.guidance_scale=0 generation.cfg_scale=0
TRAINED := evaluation.embedded_checkpoint=$(OUT)/synth_lm/synth_lm.pth

.PHONY: run test pipeline loop data lint bench clean install

run: $(VENV)/.installed
	$(PY) structure_generator.py $(FOLDERS) $(WEIGHTS) $(ARGS)
	$(PY) structure_generator.py $(FOLDERS) $(WEIGHTS) $(UNGUIDED) generation.output_dir=$(OUT)/controls/unguided_cifs $(ARGS)
	$(PY) test.py $(FOLDERS) $(WEIGHTS) $(QUICK) $(ARGS)
	$(PY) evaluate_external.py $(FOLDERS) $(WEIGHTS) $(QUICK) $(ARGS)
	@echo "open $(OUT)/report.html and $(EXTERNAL_OUT)/report.html"

pipeline: $(VENV)/.installed
	$(PY) pretrain_dimenet.py $(FOLDERS) $(ARGS)
	$(PY) material_dataset.py $(FOLDERS) $(ARGS)
	$(PY) -m scripts.pretrain_csllm $(FOLDERS) $(ARGS)
	$(PY) optimization.py $(FOLDERS) $(ARGS)
	$(PY) structure_generator.py $(FOLDERS) $(ARGS)
	$(PY) structure_generator.py $(FOLDERS) $(UNGUIDED) generation.output_dir=$(OUT)/controls/unguided_cifs $(ARGS)
	$(PY) test.py $(FOLDERS) $(TRAINED) $(ARGS)
	$(PY) evaluate_external.py $(FOLDERS) $(TRAINED) $(ARGS)

loop: $(VENV)/.installed
	$(PY) -m scripts.design_loop $(FOLDERS) $(WEIGHTS) loop.rounds=$(ROUNDS) $(ARGS)

data: $(VENV)/.installed
	$(PY) -m scripts.prepare_demo_data $(ARGS)

# One process per core: each keeps to one thread, and to whole files, so that what a file prepares is prepared once. Long files
# come first (tests/conftest.py), so that no core waits for the last one.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: $(VENV)/.installed-dev
	@mkdir -p $(OUT)/benchmark
	$(PY) -m pytest tests/benchmarks --benchmark-enable --benchmark-only --benchmark-json=$(OUT)/benchmark/speed.json $(ARGS)

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-mattersim.txt
	@test "$(MIN_DISK_MB)" || { echo "TORCH=$(TORCH): choose cpu or cuda"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, this is %d.%d: set PYTHON=..." % v[:2])'
	@$(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free // 2**20; sys.exit(0 if free > $(MIN_DISK_MB) or "$(wildcard $(PY))" else "%d MB of disk are free, the installation with TORCH=$(TORCH) needs $(MIN_DISK_MB) MB" % free)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@if test -n "$(TORCH_INDEX_$(TORCH))" && $(REACHABLE) >/dev/null 2>&1; then index="--extra-index-url $(TORCH_INDEX_$(TORCH))"; fi; \
	echo "pip install torch==2.13.0 $$index"; $(PY) -m pip install --quiet --disable-pip-version-check $$index torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-mattersim.txt
	@# The packages are found from every folder, and with PYTHONSAFEPATH=1 too.
	@$(PY) -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "her2d.pth").write_text("$(CURDIR)\n")'
	@$(PY) -m scripts.compile_loops
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(foreach part,dimenet processed denoiser synth_lm cache,$(OUT)/$(part)) $(EXTERNAL_OUT)/cache
