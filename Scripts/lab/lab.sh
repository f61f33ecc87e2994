# What the lab's scripts share: places, words for failing, a private view of a Debian suite. Sourced, never run.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${SLUICE_CACHE:-${HOME:-/tmp}/.cache/sluice}
mkdir -p "$cache"

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# Runs a command under a lock of the cache, so that two runs that start together prepare a thing once.
#   locked NAME COMMAND...
locked() {
  local name=$1
  shift
  ( flock 9; "$@" ) 9>"$cache/.lock-$name"
}

# Is every file of a cached folder still what was put there? `seal` writes the list, `intact` checks it.
seal() { ( cd "$1" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum >SHA256SUMS ); }
intact() { [ -s "$1/SHA256SUMS" ] && ( cd "$1" && sha256sum --status --strict -c SHA256SUMS 2>/dev/null ); }

# The mirror this host already uses for Debian itself.
mirror() {
  local found
  found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null \
    | grep -v '^ *#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ') || true
  found=${found%/}
  echo "${SLUICE_MIRROR:-${found:-http://deb.debian.org/debian}}"
}

# Sets `apt_options` for a view of one suite, of any architecture, that the host's own apt never sees, its lists fresh.
#   apt_view SUITE [ARCHITECTURE]
apt_view() {
  local suite=$1 architecture=${2:-amd64} folder=$cache/apt/$1
  if [ "$architecture" != amd64 ]; then folder+=-$architecture; fi
  mkdir -p "$folder/lists/partial" "$folder/archives/partial" "$folder/parts"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main" >"$folder/sources.list"
  : >"$folder/status"
  apt_options=(
    -o "Dir::Etc::sourcelist=$folder/sources.list" -o "Dir::Etc::sourceparts=$folder/parts" -o "Dir::Etc::preferencesparts=$folder/parts"
    -o "Dir::State::lists=$folder/lists" -o "Dir::State::status=$folder/status" -o "Dir::Cache=$folder"
    -o APT::Sandbox::User=root -o Acquire::Languages=none -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture"
  )
  apt-get "${apt_options[@]}" update -qq >"$folder/update.log" 2>&1 \
    || { tail -n 5 "$folder/update.log" >&2; die "apt cannot read the package lists of $suite"; }
}

# Downloads one package of the view into the folder and unpacks it there, in `root`; apt checks its checksum.
#   apt_unpack FOLDER PACKAGE
apt_unpack() {
  ( cd "$1" && apt-get "${apt_options[@]}" download "$2" ) >"$1/download.log" 2>&1 \
    || { tail -n 5 "$1/download.log" >&2; die "apt cannot download $2"; }
  dpkg -x "$1"/*.deb "$1/root"
}

# The last lines of every log of a run that failed.
show_logs() {
  local log
  for log in "$1"/*.log; do
    if [ -s "$log" ]; then
      echo "--- last lines of $log"
      tail -n "${2:-15}" "$log" | cut -c 1-300
    fi
  done
}
