#!/usr/bin/env bash
# Creates a virtual environment in the checkout with the package and everything that
# tests and the smoke run need; does nothing where it is up to date. The other scripts
# here call it. PYTHON chooses the interpreter of a new environment.
#   bash launch/setup.sh            .venv, with the tested versions of
#                                   launch/constraints-VERSION.txt
#   bash launch/setup.sh --newest   .venv-newest, with the newest releases that
#                                   pyproject.toml allows
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
if [[ "${1:-}" == --newest ]]; then
  venv=.venv-newest
fi
python=python3
if [[ -x $venv/bin/python ]]; then
  python=$venv/bin/python
fi
python="${PYTHON:-$python}"
version="$("$python" - <<'CHECK'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"error: Python {sys.version.split()[0]}: must be 3.11 or newer "
             "(choose another with PYTHON=...)")
print("%d.%d" % sys.version_info[:2])
CHECK
)"
if [[ -d $venv/lib && ! -d $venv/lib/python$version ]]; then
  echo "error: $venv: must have Python $version, as PYTHON=$python says; delete it or" \
    "leave out PYTHON" >&2
  exit 1
fi

constraints="launch/constraints-$version.txt"
options=(--constraint "$constraints")
eager=()
if [[ $venv == .venv-newest ]]; then
  constraints=/dev/null
  options=(--upgrade)
  eager=(--upgrade-strategy eager)
elif [[ ! -f $constraints ]]; then
  echo "warning: no tested versions for Python $version; installing the newest" >&2
  constraints=/dev/null
  options=()
fi

stamp="$venv/.installed"
wanted="$version $(cat requirements.txt pyproject.toml "$constraints" | cksum)"
if [[ $venv == .venv && -f $stamp && "$(cat "$stamp")" == "$wanted" ]]; then
  exit 0
fi
echo "Installing into $venv (about 3 GB, a minute or two) ..."
if [[ ! -x $venv/bin/python ]]; then
  "$python" -m venv "$venv"
fi
# What is imported is byte-compiled then, not everything now, which takes a minute more.
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile)
"${pip[@]}" "${options[@]}" uv
# uv takes a fifth of pip's time. It does not read pip's settings, which may name the only
# index that can be reached; then pip installs.
if ! "$venv/bin/uv" pip install --quiet --native-tls --python "$venv/bin/python" \
  --requirement requirements.txt "${options[@]}"; then
  echo "uv could not install; trying pip ..." >&2
  "${pip[@]}" --requirement requirements.txt "${options[@]}" "${eager[@]}"
fi
echo "$wanted" > "$stamp"
