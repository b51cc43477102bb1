#!/usr/bin/env bash
# Sets up the environment, then runs linter, type checker and tests:
#   bash launch/test.sh               all tests but the slow ones
#   bash launch/test.sh -m slow       the slow tests
#   bash launch/test.sh tests/losses  any pytest arguments
#   bash launch/test.sh --newest ...  with the newest releases of all dependencies, in
#                                     an environment of its own; then pytest arguments
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
if [[ "${1:-}" == --newest ]]; then
  venv=.venv-newest
  shift
  bash launch/setup.sh --newest
else
  bash launch/setup.sh
fi

# Compiled beside the type checker, each on a core, and found by the tests in a cache.
"$venv/bin/python" -c "from simclr_jax.data.views import host_op; host_op.register()" \
  2> /dev/null &
"$venv/bin/ruff" check --quiet .
"$venv/bin/ruff" format --check --quiet .
"$venv/bin/mypy" --no-error-summary
wait
# Neighbours stay in one process, which then makes their fixtures once.
exec "$venv/bin/python" -m pytest -n auto --dist worksteal "$@"
