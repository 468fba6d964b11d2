# make run       generate, evaluate and compare with the shipped weights (installs first)
# make test      run the tests (installs first)
# make pipeline  train everything from the embedded data, then generate, evaluate and compare
# make data      rebuild the embedded data
# make lint | make bench | make clean
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
MIN_DISK_MB := 4000
TEST_PROCESSES ?= auto
WEIGHTS := dimenet.checkpoint=weights/dimenet.pth denoiser.checkpoint=weights/denoiser.pth
# The potential relaxes H at two sites, and not where the sheet is far from stable; "make pipeline" asks for what config.yaml says.
QUICK := evaluation.potential_h_sites=2 evaluation.potential_h_max_e_hull_ev=0.2
UNGUIDED := generation.guidance_scale=0 generation.cfg_scale=0
TRAINED := evaluation.embedded_checkpoint=results/synth_lm/synth_lm.pth

.PHONY: run test pipeline data lint bench clean install

run: $(VENV)/.installed
	$(PY) structure_generator.py $(WEIGHTS) $(ARGS)
	$(PY) structure_generator.py $(WEIGHTS) $(UNGUIDED) generation.output_dir=results/controls/unguided_cifs $(ARGS)
	$(PY) test.py $(WEIGHTS) $(QUICK) $(ARGS)
	$(PY) evaluate_external.py $(WEIGHTS) $(QUICK) $(ARGS)
	@echo "open results/report.html and results_external/report.html"

pipeline: $(VENV)/.installed
	$(PY) pretrain_dimenet.py $(ARGS)
	$(PY) material_dataset.py $(ARGS)
	$(PY) -m scripts.pretrain_csllm $(ARGS)
	$(PY) optimization.py $(ARGS)
	$(PY) structure_generator.py $(ARGS)
	$(PY) structure_generator.py $(UNGUIDED) generation.output_dir=results/controls/unguided_cifs $(ARGS)
	$(PY) test.py $(TRAINED) $(ARGS)
	$(PY) evaluate_external.py $(TRAINED) $(ARGS)

data: $(VENV)/.installed
	$(PY) -m scripts.prepare_demo_data $(ARGS)

# One process per core: each keeps to one thread, and to whole files, so that what a file prepares is prepared once.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: $(VENV)/.installed-dev
	$(PY) -m pytest tests/benchmarks --benchmark-enable --benchmark-only $(ARGS)

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-mattersim.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, this is %d.%d: set PYTHON=..." % v[:2])'
	@$(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free // 2**20; sys.exit(0 if free > $(MIN_DISK_MB) or "$(wildcard $(PY))" else "%d MB of disk are free, the installation needs $(MIN_DISK_MB)" % free)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-mattersim.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf results/dimenet results/processed results/denoiser results/synth_lm results/controls results/cache results_external/cache
