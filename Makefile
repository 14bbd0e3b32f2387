# The commands a person runs; continuous integration runs the same ones.
#
#   make run          set up .venv and start the demonstration in the foreground
#   make test         every check and every test (peers that are not installed are skipped)
#   make check        lint, format and types only
#   make docs         the documents as a site, in build/docs; a link that leads nowhere is an error
#   make man          the reference's tables and the manual pages, after a change of what they are made of
#   make check-deploy each file in deploy/ by the tool that will read it; packages built and installed
#   make wheel        dist/: the wheel and the source distribution
#   make deb          build/deb/*.deb: the Debian packages, for the Python of this machine (REVISION=1)
#   make bench        measure everything and write the report: 45 minutes, best as root on an idle machine
#   make bench-quick  one short round of the same, to look at: two minutes
#   make faults       the whole campaign of faults (55 minutes), and its table in docs/reliability.md: best as root
#   make soak         its row 40 alone: twenty minutes of load and faults at random (SOAK=minutes)
#   make failover     a pair of firewalls fails over a hundred times, for the figures in docs/pair.md: as root
#   make rsync-tls    real rsync over TLS, end to end on this machine: deploy/examples/rsync-tls
#   make clean        remove everything these made
#
# A different interpreter: make run PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help run test check docs man check-deploy wheel deb bench bench-quick faults soak failover rsync-tls clean

help:
	@sed -n 's/^#   //p' Makefile

run: $(VENV)/.installed
	@$(PY) deploy/demo/demo.py

test: check
	$(PY) -m pytest -n 2 --dist loadfile -m "not alone and not campaign and not package"
	$(PY) -m pytest -m "alone and not campaign and not package"

check: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict
	$(PY) -m mypy --strict deploy/demo/demo.py
	$(PY) -m mypy --strict deploy/grafana/dashboard.py
	$(PY) -m mypy --strict deploy/debian/changelog.py
	$(PY) -m mypy --strict deploy/kubernetes/prometheusrule.py
	$(PY) -m mypy --strict docs/conf.py docs/reference.py docs/manual.py
	@if command -v mandoc >/dev/null; then mandoc -T lint -W warning docs/man/*.[1578]; fi

docs: man
	$(PY) -m sphinx -q -W --keep-going -n -b html -c docs . build/docs
	@echo "open build/docs/index.html"

man: $(VENV)/.installed-dev
	$(PY) docs/reference.py
	$(PY) docs/manual.py

check-deploy: $(VENV)/.installed-dev
	$(PY) -m pytest tests/deploy

wheel: $(VENV)/.installed-dev
	rm -rf dist
	$(PY) -m build

# The build has a tree of its own, since Debian wants its directory at the top.
REVISION ?= 1
DEB      := build/deb
deb:
	rm -rf $(DEB)
	mkdir -p $(DEB)/fastfwd
	tar -c --exclude=__pycache__ *.md LICENSE fastfwd docs deploy | tar -x -C $(DEB)/fastfwd
	cp -r deploy/debian $(DEB)/fastfwd/debian
	$(PYTHON) deploy/debian/changelog.py '$(REVISION)' "$$(sed -n 's/^Maintainer: //p' deploy/debian/control)" \
	    >$(DEB)/fastfwd/debian/changelog
	cd $(DEB)/fastfwd && dpkg-buildpackage -b -us -uc
	@ls $(DEB)/*.deb

bench: $(VENV)/.installed-bench
	$(PY) -m bench

bench-quick: $(VENV)/.installed-bench
	$(PY) -m bench --quick

SOAK ?= 20
faults: $(VENV)/.installed-dev
	FASTFWD_FAULTS=full SOAK=$(SOAK) $(PY) -m pytest tests/faults
	$(PY) -m tests.faults.report

soak: $(VENV)/.installed-dev
	$(PY) -m tests.faults.soak $(SOAK)

failover: $(VENV)/.installed-dev
	$(PY) -m tests.deploy.pair --write

rsync-tls: $(VENV)/.installed
	@FASTFWD='$(abspath $(PY)) -m fastfwd' deploy/examples/rsync-tls/try.sh

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Three stamps: `make run` needs no development tools, `make bench` only what draws its pictures. A changed
# pyproject.toml installs again.

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	@echo "installing fastfwd into $(VENV)"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/pip
	@echo "installing fastfwd and its development tools into $(VENV)"
	@$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-bench

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/bin/pip
	@echo "installing fastfwd and what its bench needs into $(VENV)"
	@$(PIP) install --editable '.[bench]'
	@touch $@ $(VENV)/.installed

# pip comes last into a new environment, so a half-made one is made again.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "fastfwd needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1 | head -n 1)" >&2; \
	  echo "choose another with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "$(PYTHON) -m venv failed; on Debian and Ubuntu it needs: apt install python3-venv" >&2; exit 1; }
