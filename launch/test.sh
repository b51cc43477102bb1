#!/usr/bin/env bash
# Sets up the environment, then runs linter, type checker and tests:
#   bash launch/test.sh               everything but the slow tests
#   bash launch/test.sh -m slow       the slow ones
#   bash launch/test.sh tests/losses  any pytest arguments
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh

.venv/bin/ruff check --quiet .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy --no-error-summary
exec .venv/bin/python -m pytest -n auto "$@"
