# Everything happens in an environment of its own, .venv, made once by the first Python found that is new enough.
# A stamp file per installation makes later runs quick; an edited pyproject.toml, constraints.txt or C source installs again.

VENV := .venv
COMPILED := $(wildcard nvae_codec/coding/compiled/*.[ch])
BIN := $(VENV)/bin
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $$python && break; done)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help dist docs demo test quick test-matrix test-ray test-slow lint train-photo train-tiny train-mnist save-runs kodak report figures report-kodak report-cifar10 report-codecs report-archives report-mnist report-reported clean

help:
	@echo "make demo [IMAGE=my.png]   compress and decompress a photograph, beside PNG, WebP and JPEG XL"
	@echo "make quick                 run the first case of every test that takes no seconds, in a minute and a half"
	@echo "make test                  run the tests, in seven to twelve minutes on two cores"
	@echo "make test-matrix           run those of exactness as on other processors, with other kernels, and with the oldest"
	@echo "                           and newest libraries, in environments of their own; 12 GB and an hour"
	@echo "make test-slow             run the tests that train, code full-size images, or start many processes"
	@echo "make test-ray              run those of coding with Ray, which it installs"
	@echo "make lint                  check the sources with ruff, their types with mypy"
	@echo "make kodak DATA=folder     rates and times of a folder of images, decoded by another process; see results/kodak"
	@echo "make report KODAK=folder CIFAR=folder [MNIST=folder]   measure the bundled models, beside other codecs: results/report/report.html"
	@echo "make figures               put the figures and plots of the last report into README, cards and documents"
	@echo "make train-photo PHOTOS=folder [PRECISION=bf16]   begin the long run of the preset photo-next, or continue it"
	@echo "make train-tiny CIFAR=folder [PRECISION=bf16]     likewise of tiny-next"
	@echo "make train-mnist MNIST=folder [PRECISION=bf16]    likewise of mnist-nvae"
	@echo "make save-runs             put the weights of these runs where the repository keeps them, docs/*.pt"
	@echo "make docs                  build the documentation site, and run the tutorial: build/site/index.html"
	@echo "make dist                  build the source archive and the wheels for Linux on x86-64 and 64-bit Arm: dist/"
	@echo "make clean                 remove the environment and everything that was built"
	@echo
	@echo "PYTHON=python3.12 chooses the Python, 3.11 or later, that a new environment is made with."

demo: $(VENV)/eval.stamp
	$(BIN)/nvae-codec eval demo $(if $(IMAGE),"$(IMAGE)")

# A process for each processor, which takes tests from another one when it has none left.
pytest := python -m pytest -n auto --dist worksteal

test: $(VENV)/dev.stamp
	$(BIN)/$(pytest)

quick: $(VENV)/dev.stamp
	$(BIN)/$(pytest) --quick

test-matrix: $(VENV)/dev.stamp .venv-lowest/stamp newest
	$(BIN)/python tests/matrix.py --lowest .venv-lowest --newest .venv-newest

# Ray comes with this alone: it is large, and nothing but --engine ray needs it.
test-ray: $(VENV)/ray.stamp
	$(BIN)/python -m pytest -m slow tests/test_ray_workers.py

test-slow: $(VENV)/ray.stamp
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev.stamp
	mkdir -p build/types && ln -sfn ../.. build/types/nvae_codec
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Beside other work: it takes what that leaves. The folder holds the training images, as docs/photo_images.py makes them; bf16 is for processors that have it.
# The same command continues a run. A checkout without one begins anew with the weights that save-runs has put into docs/.
# continue: the preset, which is the run's name, too; the folder of the data; further options.
continue = nice -n 19 $(BIN)/nvae-codec train --preset $(1) --data "$(2)" --run runs/$(1) --precision $(or $(PRECISION),auto) --save-every 500 --report-every 100 --no-export $(3) $(call begun_with,$(1))
# A run that began with the weights in docs/ is continued with the same option.
begun_with = $(if $(wildcard docs/$(1).pt),$(if $(wildcard runs/$(1)/checkpoint.pt),$(if $(shell grep '"start": ""' runs/$(1)/config.json),,--from docs/$(1).pt),--from docs/$(1).pt))

train-photo: $(VENV)/dev.stamp
	@test -n "$(PHOTOS)" || { echo "make train-photo PHOTOS=folder: say where the images are" >&2; exit 2; }
	$(call continue,photo-next,$(PHOTOS))

train-tiny: $(VENV)/dev.stamp
	@test -n "$(CIFAR)" || { echo "make train-tiny CIFAR=folder: say where the data set is" >&2; exit 2; }
	$(call continue,tiny-next,$(CIFAR))

# The preset's own 50,000 steps are done (docs/experiments.md). This is a second run of 60,000, from the weights that they ended with.
train-mnist: $(VENV)/dev.stamp
	@test -n "$(MNIST)" || { echo "make train-mnist MNIST=folder: say where the data set is" >&2; exit 2; }
	$(call continue,mnist-nvae,$(MNIST),--steps 60000 --learning-rate 6e-3 --set kl_anneal_portion=0 --set cooldown=1)

save-runs: $(VENV)/dev.stamp
	@for run in $(patsubst runs/%/checkpoint.pt,%,$(wildcard runs/photo-next/checkpoint.pt runs/tiny-next/checkpoint.pt runs/mnist-nvae/checkpoint.pt)); do $(BIN)/python docs/save_run.py runs/$$run docs/$$run.pt || exit; done

kodak: $(VENV)/eval.stamp
	@test -n "$(DATA)" || { echo "make kodak DATA=folder: say where the images are" >&2; exit 2; }
	rm -rf results/kodak
	$(BIN)/nvae-codec eval compare "$(DATA)" --cross-process --output-dir results/kodak

# Two at a time, each on one thread, but for the codecs' times. PHOTO_RUN, CIFAR_RUN and MNIST_RUN are the runs that the models were made of, if they are there: then the negative ELBO of
# floats is measured, too. IMAGES says how many of CIFAR-10's 10,000 test images get a file each, ARCHIVE how many images an archive has; CIFAR_MODEL which model
# codes them.
REPORT := results/report
IMAGES ?= 500
ARCHIVE ?= 10000
CIFAR_MODEL ?= tiny
evaluate := OMP_NUM_THREADS=1 $(BIN)/nvae-codec eval
rate := $(evaluate) rate
compare := $(evaluate) compare
cifar := --dataset cifar10 --data "$(CIFAR)"
mnist := --dataset mnist --data "$(MNIST)"

report: $(VENV)/dev.stamp
	@test -n "$(KODAK)" -a -n "$(CIFAR)" || { echo "make report KODAK=folder CIFAR=folder: say where the images are" >&2; exit 2; }
	rm -rf $(REPORT)
	$(MAKE) -j2 report-kodak report-archives report-cifar10 report-reported $(if $(MNIST),report-mnist)
	$(MAKE) report-codecs
	$(BIN)/nvae-codec eval report $(addprefix $(REPORT)/,kodak kodak-codecs kodak-reduced cifar10 cifar10-codecs archive archive-codecs $(if $(MNIST),mnist mnist-codecs) reported) -o $(REPORT)/report.html
	@echo "$(REPORT)/report.html"

# README, cards and documents take their figures and plots from the last report, whose digest is docs/measured.json.
figures: $(VENV)/dev.stamp
	$(BIN)/python docs/write_figures.py $(wildcard $(REPORT))

report-kodak:
	$(rate) "$(KODAK)" $(if $(PHOTO_RUN),--float-network "$(PHOTO_RUN)") -o $(REPORT)/kodak
	$(compare) "$(KODAK)" --reduce 4 -o $(REPORT)/kodak-reduced

report-cifar10:
	$(rate) $(cifar) --images $(IMAGES) --model "$(CIFAR_MODEL)" $(if $(CIFAR_RUN),--float-network "$(CIFAR_RUN)") -o $(REPORT)/cifar10
	$(compare) $(cifar) --images $(IMAGES) --model "$(CIFAR_MODEL)" --solid -o $(REPORT)/cifar10-codecs

report-archives:
	$(rate) $(cifar) --images $(ARCHIVE) --archive --model "$(CIFAR_MODEL)" $(if $(CIFAR_RUN),--float-network "$(CIFAR_RUN)") -o $(REPORT)/archive
	$(compare) $(cifar) --images $(ARCHIVE) --model none --baselines webp,jxl-e7,jxl --solid -o $(REPORT)/archive-codecs

report-mnist:
	$(rate) $(mnist) --images $(ARCHIVE) --archive --model mnist $(if $(MNIST_RUN),--float-network "$(MNIST_RUN)") -o $(REPORT)/mnist
	$(compare) $(mnist) --images $(ARCHIVE) --model none --baselines png,webp,jxl-e7,jxl --bits 1 --solid -o $(REPORT)/mnist-codecs

# By itself and with all threads: its times are those of the documents.
report-codecs:
	$(BIN)/nvae-codec eval compare "$(KODAK)" -o $(REPORT)/kodak-codecs

report-reported:
	$(evaluate) reported $(if $(CIFAR_RUN),--run "$(CIFAR_RUN)" --model "$(CIFAR_MODEL)" $(cifar) --images $(IMAGES)) -o $(REPORT)/reported

# A warning, such as of a link that leads nowhere, and a page of the tutorial that fails are errors.
docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -b html -c docs . build/site
	@echo "build/site/index.html"

# Source archive, and a wheel for each kind of machine, built from the archive.
dist: $(VENV)/dev.stamp
	rm -rf dist
	$(BIN)/python -m build --sdist --outdir dist
	for target in x86_64 aarch64; do $(BIN)/python -m pip wheel --disable-pip-version-check --no-cache-dir --no-deps --wheel-dir dist -C target=$$target dist/*.tar.gz || exit; done
	$(BIN)/twine check --strict dist/*
	@ls -l dist

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest build dist results *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python.stamp:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later found: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/eval.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt $(COMPILED)
	$(INSTALL) --editable '.[eval]'
	touch $@

$(VENV)/ray.stamp: $(VENV)/dev.stamp
	$(INSTALL) --editable '.[train,eval,ray,dev]'
	touch $@

$(VENV)/docs.stamp: $(VENV)/dev.stamp
	$(INSTALL) --editable '.[train,eval,docs,dev]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt $(COMPILED)
	$(INSTALL) --editable '.[train,eval,dev]'
	touch $@ $(VENV)/eval.stamp

# The oldest Python and libraries that are supported, and the newest that can be had.
NEWEST_PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 $(PYTHON); do \
	$$python -c '' >/dev/null 2>&1 && echo $$python && break; done)

.venv-lowest/stamp: pyproject.toml lowest.txt
	python3.11 -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --disable-pip-version-check --constraint lowest.txt --editable '.[train,eval,dev]'
	touch $@

.PHONY: newest
newest:
	$(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --disable-pip-version-check --upgrade --upgrade-strategy eager --editable '.[train,eval,dev]'
