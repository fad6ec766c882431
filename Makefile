# Everything happens in an environment of its own, .venv, made once by the first Python found that is new enough.
# A stamp file per installation makes later runs quick; an edited pyproject.toml or constraints.txt installs again.

VENV := .venv
BIN := $(VENV)/bin
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $$python && break; done)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint kodak report report-kodak report-cifar10 report-codecs clean

help:
	@echo "make demo [IMAGE=my.png]   compress and decompress a photograph, beside PNG, WebP and JPEG XL"
	@echo "make test                  run the tests, in under 15 minutes"
	@echo "make test-slow             run the tests that train, or code full-size pictures"
	@echo "make lint                  check the sources with ruff"
	@echo "make kodak DATA=folder     rates and times of a folder of pictures, decoded by another process; see results/kodak"
	@echo "make report KODAK=folder CIFAR=folder   measure Kodak and CIFAR-10 test images: results/report/report.html"
	@echo "make clean                 remove the environment and everything that was built"
	@echo
	@echo "PYTHON=python3.12 chooses the Python, 3.11 or later, that a new environment is made with."

demo: $(VENV)/eval.stamp
	$(BIN)/python -m nvae_codec.eval.demo $(if $(IMAGE),"$(IMAGE)")

# A process for each processor, one thread each: small networks are slower on several.
test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .

kodak: $(VENV)/eval.stamp
	@test -n "$(DATA)" || { echo "make kodak DATA=folder: say where the pictures are" >&2; exit 2; }
	$(BIN)/python -m nvae_codec.eval.compare "$(DATA)" --cross-process --output-dir results/kodak

# Two at a time, each on one thread. PHOTO_RUN and CIFAR_RUN are the runs that the models were made of, if they are there: then the negative ELBO of floats is
# measured, too. IMAGES says how many of CIFAR-10's 10,000 test images; CIFAR_MODEL which model codes them.
REPORT := results/report
IMAGES ?= 500
CIFAR_MODEL ?= tiny
one_thread := OMP_NUM_THREADS=1 $(BIN)/python -m

report: $(VENV)/dev.stamp
	@test -n "$(KODAK)" -a -n "$(CIFAR)" || { echo "make report KODAK=folder CIFAR=folder: say where the pictures are" >&2; exit 2; }
	rm -rf $(REPORT)
	$(MAKE) -j2 report-kodak report-cifar10 report-codecs
	$(BIN)/python -m nvae_codec.eval.report $(REPORT)/kodak $(REPORT)/kodak-codecs $(REPORT)/kodak-reduced $(REPORT)/cifar10 $(REPORT)/cifar10-codecs $(REPORT)/reported -o $(REPORT)/report.html
	@echo "$(REPORT)/report.html"

report-kodak:
	$(one_thread) nvae_codec.eval.rate_vs_elbo "$(KODAK)" $(if $(PHOTO_RUN),--float-network "$(PHOTO_RUN)") -o $(REPORT)/kodak

report-cifar10:
	$(one_thread) nvae_codec.eval.rate_vs_elbo --dataset cifar10 --data "$(CIFAR)" --images $(IMAGES) --model "$(CIFAR_MODEL)" $(if $(CIFAR_RUN),--float-network "$(CIFAR_RUN)") -o $(REPORT)/cifar10
	$(one_thread) nvae_codec.eval.compare --dataset cifar10 --data "$(CIFAR)" --images $(IMAGES) --model "$(CIFAR_MODEL)" --solid -o $(REPORT)/cifar10-codecs

report-codecs:
	$(one_thread) nvae_codec.eval.compare "$(KODAK)" --model none -o $(REPORT)/kodak-codecs
	$(one_thread) nvae_codec.eval.compare "$(KODAK)" --reduce 4 -o $(REPORT)/kodak-reduced
	$(one_thread) nvae_codec.eval.reported $(if $(CIFAR_RUN),--run "$(CIFAR_RUN)" --model "$(CIFAR_MODEL)" --dataset cifar10 --data "$(CIFAR)" --images $(IMAGES)) -o $(REPORT)/reported

clean:
	rm -rf $(VENV) build dist results *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python.stamp:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later found: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/eval.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(INSTALL) --editable '.[eval]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(INSTALL) --editable '.[train,eval,dev]'
	touch $@ $(VENV)/eval.stamp
