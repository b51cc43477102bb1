#!/usr/bin/env bash
# Makes .venv in the checkout with the package and all it needs; does nothing where it
# is up to date. Other scripts here call it; PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-python3}"
stamp=.venv/.installed
wanted="$(cat requirements.txt pyproject.toml | cksum)"

if [[ -f $stamp && "$(cat "$stamp")" == "$wanted" ]]; then
  exit 0
fi
"$python" - <<'CHECK'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"error: Python {sys.version.split()[0]}: must be 3.11 or newer "
             "(choose another with PYTHON=...)")
CHECK
echo "Installing into .venv (about 2.5 GB, a minute or two) ..."
if [[ ! -x .venv/bin/python ]]; then
  "$python" -m venv .venv
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
echo "$wanted" > "$stamp"
