# shellcheck shell=bash
# What the stand-ins share. FAKE is their world: calls, machines, failures to act out.

# Notes a call, and fails where the test asked for it: fail/NAME holds the words, and
# once/NAME does so one time only.
called() {
  local line fd
  printf -v line '%s\x1f' "$@"
  exec {fd}>> "$FAKE/calls"
  flock "$fd"
  printf '%s\x1e' "$line" >&"$fd"
  exec {fd}>&-
}
may_fail() {
  local name=$1 kind
  for kind in fail once; do
    if [[ -f $FAKE/$kind/$name ]]; then
      cat "$FAKE/$kind/$name" >&2
      [[ $kind == once ]] && rm "$FAKE/$kind/$name"
      exit 1
    fi
  done
}

# Runs a text as worker $1 would, in a world of its own.
on_worker() {
  local root=$FAKE/workers/$1 text=$2
  may_fail "ssh-$1"
  mkdir -p "$root/home" "$root/dev" "$root/tmp"
  text=${text//\/dev\/accel/$root/dev/accel}
  text=${text//\/tmp\/libtpu/$root/tmp/libtpu}
  cd "$root/home" || exit 1
  if [[ -f $FAKE/once/lost-$1 ]]; then  # the connection breaks before the answer
    rm "$FAKE/once/lost-$1"
    HOME=$root/home WORKER=$1 PATH=$FAKE/worker_bin:$PATH bash -c "$text" > /dev/null
    echo 'connection lost' >&2
    exit 255
  fi
  echo "Welcome to worker $1"
  HOME=$root/home WORKER=$1 PATH=$FAKE/worker_bin:$PATH exec bash -c "$text"
}

copy_to_worker() {
  local root=$FAKE/workers/$1
  may_fail "scp-$1"
  mkdir -p "$root/home"
  cp "$2" "$root/home/$3"
}
