.DEFAULT_GOAL := help
.PHONY: help setup demo test check format up down clean fast-checks types tests

BIN := .venv/bin
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose) \
	-f infra/docker-compose.yml --env-file infra/.env

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with everything that medgen needs (nothing to do when it is up to date)
	@infra/setup.sh

demo: setup ## run the whole pipeline on real videos that come inside packages
	@$(BIN)/medgen demo

# The types are checked beside the tests, which often wait. What mypy found is told once more at the end; it knows it then.
test: ## check the code and run all tests
	@infra/setup.sh test
	@$(MAKE) --no-print-directory fast-checks
	@$(MAKE) --no-print-directory --keep-going --jobs 2 tests types || { $(BIN)/mypy; exit 1; }

check: ## check format, style, types and declared dependencies
	@infra/setup.sh
	@$(MAKE) --no-print-directory fast-checks types

fast-checks:
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/deptry .

types:
	@$(BIN)/mypy

# Tests wait for servers and other processes for a quarter of their time: three at once keep two cores busy.
tests:
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

format: setup ## bring the code into the house format
	@$(BIN)/ruff format

up: infra/.env ## start Postgres, MinIO, Prefect's server and a worker in containers
	@$(COMPOSE) up --build --detach

down: infra/.env ## stop the containers; their data stay
	@$(COMPOSE) down

infra/.env:
	@echo "medgen: first copy infra/.env.example to infra/.env and fill in the passwords" >&2; exit 1

clean: ## remove caches; .venv and the data in .medgen stay
	@rm -rf .ruff_cache .mypy_cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -not -path './.venv/*' -not -path './.medgen/*' -prune -exec rm -rf {} +
