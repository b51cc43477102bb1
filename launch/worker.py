"""The bash programs that run on a worker, over any transport.

Each answers in lines `@KEY VALUE`, `@reached` first. On a worker, `checkout` has the
code and its .venv, and `run` the state of the run: `pid` of the shell that supervises
over the program, `exit_code` once it ended, and `log`. `run` is named after the host,
so that hosts with one shared home directory do not collide.

The programs are strings here and not files: they are sent over ssh's standard input to
hosts that have bash and nothing else, with their settings filled in.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

Setting = str | int | list[str]

CHIPS = "-lname '/dev/accel*' -o -lname '/dev/vfio/*'"
LIBTPU_LOCK = "/tmp/libtpu_lockfile"
SHARED_WAIT_SECS = 10  # network file systems cache what is in a directory

_VARIABLES = {
    "checkout": 'checkout=$(realpath -m -- "$HOME/{checkout}")',
    "run": 'run=$(realpath -m -- "$HOME/{run}")/$(hostname)',
}

# Put in front of the texts that use them, the last ones first.
_FUNCTIONS = {
    "fail": r"""
fail() {
  echo "error: $*"
  exit 1
}
""",
    # A process id can be another's after a restart of the machine; a process that has
    # the run's directory as an argument is ours.
    "is_running": r"""
is_running() {
  local pid
  pid=$(cat "$run/pid") || return 1
  tr '\0' '\n' < "/proc/$pid/cmdline" | grep -qxF -- "$run"
} 2>/dev/null
""",
    # Sets `sid` to the session of a process, without ps, which minimal images lack.
    "session_of": r"""
session_of() {
  local stat=
  IFS= read -r -d '' stat < "/proc/$1/stat"
  # After the name in parentheses: state, parent, group, session.
  read -r _ _ _ sid _ <<< "${stat##*) }"
} 2>/dev/null
""",
    # Processes of these commands in this checkout that outlived their supervisor,
    # or were started by hand; not those of a run that is recorded, in whatever
    # directory. A supervisor's arguments name that, behind the word simclr_jax_run.
    "leftovers": r"""
leftovers() {
  local pid sid recorded
  find /proc/[0-9]*/cwd -maxdepth 0 -lname "$checkout" | cut -d/ -f3 |
  while read -r pid; do
    tr '\0' '\n' < "/proc/$pid/cmdline" \
      | grep -qxE 'simclr_jax\.(pretrain|doctor|rehearse|evaluate)' || continue
    session_of "$pid"
    recorded=$(tr '\0' '\n' < "/proc/$sid/cmdline" \
      | grep -m 1 -xF -A 1 simclr_jax_run | tail -n 1)
    [[ -n $recorded && $(cat "$recorded/pid") == "$sid" ]] || echo "$pid"
  done
} 2>/dev/null
""",
}

PUSH = r"""
is_running && fail "the run is active here; stop it before pushing code"
mkdir -p "$checkout"
cd "$checkout" || fail "$checkout: cannot be created"
exec 9> .launch.lock  # hosts may share this directory
flock 9
if [[ -f .pushed ]]; then
  xargs -r -d '\n' rm -f < .pushed
fi
tar --quoting-style=literal -tzf "$HOME/$archive" > .pushed || fail "damaged archive"
tar -xzf "$HOME/$archive" || fail "the code could not be unpacked"
rm -f "$HOME/$archive"
"""

PREPARE = r"""
is_running && fail "the run is active here; stop it before preparing"
bash -c "$prepare" || fail "the command of --prepare failed"
"""

INSTALL = r"""
is_running && fail "the run is active here; stop it before installing"
cd "$checkout" || fail "no code here; push it first"
exec 9> .launch.lock
flock 9
PYTHON="$python" bash launch/setup.sh || fail "launch/setup.sh failed"
if [[ -n $requirement ]]; then  # with the package, whose limits on versions hold then
  # Without --upgrade, so that the tested version of JAX stays.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --editable . "$requirement" || fail "pip install $requirement failed"
fi
"""

INSPECT = r"""
as_root=()
sees_all=yes
if [[ $(id -u) != 0 ]]; then
  if sudo -n true 2>/dev/null; then as_root=(sudo -n); else sees_all=no; fi
fi

cd "$checkout" || fail "no code here; push it first"
echo "@code $({ find simclr_jax configs -name '*.py'; ls pyproject.toml requirements.txt
  } | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum | cut -c1-12)"
if [[ -x .venv/bin/python ]]; then
  .venv/bin/python -c "$versions" || fail ".venv/bin/python cannot start"
fi

is_running && echo "@running $(cat "$run/pid")"
for pid in $(leftovers); do
  echo "@leftover $pid $(tr '\0' ' ' < "/proc/$pid/cmdline" | cut -c1-120)"
done

holders=$("${as_root[@]}" find /proc/[0-9]*/fd \( {CHIPS} \) 2>/dev/null \
  | cut -d/ -f3 | sort -nu)
for pid in $holders; do
  echo "@holder $pid $(tr '\0' ' ' < "/proc/$pid/cmdline" | cut -c1-120)"
done
if [[ -e {LOCK} && -z $holders ]]; then
  if [[ $sees_all == no ]]; then
    echo "@lock unknown"
  elif "${as_root[@]}" rm -f {LOCK}; then
    echo "@lock removed"
  else
    echo "@lock stuck"
  fi
fi
""".replace("{CHIPS}", CHIPS).replace("{LOCK}", LIBTPU_LOCK)

# Names and versions of what must be the same on every worker.
VERSIONS = """
import sys
from importlib import metadata
print("@version python", sys.version.split()[0])
for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin",
             "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow"):
    try:
        print("@version", name, metadata.version(name))
    except metadata.PackageNotFoundError:
        pass
"""

# The same on a store, by the path module that the run will use. Every worker writes.
STORE = r"""
cd "$checkout" || fail "no code here; push it first"
.venv/bin/python -c "$program" "$workdir" "$nonce" "$act" || exit 1
"""

STORE_PROGRAM = """
import socket, sys
from simclr_jax import paths
workdir, name, act = sys.argv[1:]
try:
    paths.check_reachable(workdir, flag="workdir")
    mark = paths.as_path(workdir) / name
    own = mark.with_name(f"{name}-{socket.gethostname()}")
    if act == "remove":
        mark.unlink(missing_ok=True)
    else:
        (mark if act == "write" else own).write_text("shared")
    if act == "see":
        own.unlink()
        print("@seen", "yes" if mark.exists() else "no")
except Exception as error:
    print(f"error: {error}".splitlines()[0])
    sys.exit(1)
"""

SHARED_WRITE = r"""
cd "$checkout" || fail "no code here; push it first"
mkdir -p "$workdir" || fail "$workdir: cannot be created"
echo shared > "$workdir/$nonce" || fail "$workdir: cannot be written to"
"""

SHARED_SEE = r"""
cd "$checkout" || fail "no code here; push it first"
for ((i = 0; i <= tries; i++)); do
  if [[ -e $workdir/$nonce ]]; then
    if [[ -w $workdir ]]; then echo "@seen yes"; else echo "@seen readonly"; fi
    exit 0
  fi
  sleep 0.5
done
echo "@seen no"
"""

SHARED_REMOVE = r"""
cd "$checkout" || fail "no code here; push it first"
rm -f "$workdir/$nonce"
rmdir "$workdir" 2>/dev/null  # only if empty
exit 0
"""

START = r"""
# shellcheck disable=SC2317,SC2329  # called by its text
supervise() {  # outlives the connection and notes how the program ended
  .venv/bin/python -u -m simclr_jax.pretrain "${@:2}"
  echo "$?" > "$1/exit_code.new"
  mv "$1/exit_code.new" "$1/exit_code"
}

if is_running; then
  # A broken connection is retried with the same program.
  [[ $(cat "$run/start_id") == "$start_id" ]] && echo "@started again" && exit 0
  echo "@refused yes"
  fail "the run is already active here"
fi
cd "$checkout" || fail "no code here; push it first"
[[ -x .venv/bin/python ]] || fail "no .venv here; install first"
mkdir -p "$run" || fail "$run: cannot be created"
rm -f "$run/exit_code"
echo "$start_id" > "$run/start_id"
echo "=== $(date -u +%FT%TZ) simclr_jax.pretrain ${arguments[*]}" >> "$run/log"
setsid nohup bash -c "$(declare -f supervise); supervise \"\$@\"" simclr_jax_run \
  "$run" "${arguments[@]}" >> "$run/log" 2>&1 < /dev/null &
echo "$!" > "$run/pid"
echo "@started $!"
"""

STATUS = r"""
if is_running; then
  echo "@state running"
elif [[ -f $run/exit_code ]]; then
  echo "@state exited"
  echo "@exit_code $(cat "$run/exit_code")"
elif [[ -f $run/pid ]]; then
  echo "@state died"
else
  echo "@state none"
fi
echo "@last $(tail -n 1 "$run/log" 2>/dev/null | tr -d '\r' | cut -c1-160)"
"""

STOP = r"""
members() {  # except the shell that notes the exit code
  local folder pid sid supervisor
  if is_running; then
    supervisor=$(cat "$run/pid")
    for folder in /proc/[0-9]*; do
      pid=${folder#/proc/}
      session_of "$pid"
      [[ $sid == "$supervisor" && $pid != "$supervisor" ]] && echo "$pid"
    done
  fi
  leftovers
}

ended_within() {
  local end=$((SECONDS + $1))
  until [[ -z $(members) ]] && ! is_running; do
    ((SECONDS >= end)) && return 1
    sleep 0.2
  done
}

ended_within 0 && echo "@stopped nothing" && exit 0
# The shell's own kill: minimal images have no such program for xargs.
members | while read -r pid; do kill -TERM "$pid"; done
ended_within "$grace" && echo "@stopped TERM" && exit 0
members | while read -r pid; do kill -KILL "$pid"; done
ended_within 2 && echo "@stopped KILL" && exit 0
is_running && kill -KILL -- "-$(cat "$run/pid")" 2>/dev/null
ended_within 2 && echo "@stopped KILL" && exit 0
fail "process $(members | tr '\n' ' ')does not end, not even by KILL"
"""

LOGS = r"""
[[ -f $run/log ]] || fail "no log here; nothing was started"
if [[ $follow == yes ]] && is_running; then
  exec tail -n "$lines" --pid="$(cat "$run/pid")" -f "$run/log"
fi
tail -n "$lines" "$run/log"
"""

ATTACHED = r"""
cd "$checkout" || fail "no code here; push it first"
[[ -x .venv/bin/python ]] || fail "no .venv here; install first"
is_running && fail "the run is active here; the chips are taken"
exec .venv/bin/python -u -m "$module" "${arguments[@]}"
"""


@dataclass(frozen=True)
class Place:
    """Where things are on a worker, relative to the home directory.

    Raises:
      ValueError: a path with anything but letters, digits and `._/-`, or absolute.
    """

    checkout: str = "simclr_jax"
    run: str = "simclr_jax_run"

    def __post_init__(self) -> None:
        for path in (self.checkout, self.run):
            if not re.fullmatch(r"(?![/-])[\w./-]+", path, re.ASCII):
                raise ValueError(
                    f"{path!r}: must be a path relative to the home directory, of "
                    "letters, digits and ._/-"
                )


def script(body: str, place: Place, settings: Mapping[str, Setting]) -> str:
    """A text with all it needs in front: settings, then functions.

    Args:
      body: one of the texts above.
      place: where the code and the run's files are.
      settings: shell variables, quoted here; a list becomes an array.
    """
    text = body.lstrip("\n")
    for name, function in reversed(_FUNCTIONS.items()):
        if re.search(rf"\b{name}\b", text):
            text = function.lstrip("\n") + "\n" + text
    lines = ["set -u", "echo '@reached yes'"]
    for name, line in _VARIABLES.items():
        if re.search(rf"\${name}\b", text):
            lines.append(line.format(checkout=place.checkout, run=place.run))
    for name, value in settings.items():
        if isinstance(value, list):
            lines.append(f"{name}=({shlex.join(value)})")
        else:
            lines.append(f"{name}={shlex.quote(str(value))}")
    return "\n".join([*lines, "", text])
