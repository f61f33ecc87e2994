# Where the images of Scripts/lab/speed are: on tmpfs, in a folder of a file system, or behind a delay; through the host's page
# cache, or around it (O_DIRECT). Sourced after lab.sh; needs `work`, and `limit`, the seconds that all of it may take.

image_dir= direct= delay= file_system=
declare -A late_pid=()

# Makes what the images need, and sets `storage`, what a reader is told, and `images`, the folder they are in.
storage_begin() {
  images=$work
  if [ -n "$delay" ]; then
    [[ $delay =~ ^[1-9][0-9]*$ ]] || die "--delay: $delay is not a number of milliseconds above 0"
    [ -z "$image_dir" ] || die "--delay and --image-dir: one or the other"
    local slow=$tree/Tests/Support/SlowFiles compiler
    compiler=$(command -v clang || command -v cc) || die "no C compiler (the Swift toolchain brings clang)"
    "$compiler" -O2 -I"$slow/include" -o "$work/late" "$tree/Scripts/lab/late.c" "$slow/slow_files.c" || die "cannot compile late.c"
    # or the page cache would have all of it after a second
    direct=yes
    storage="a file that answers after $delay ms, around the page cache (O_DIRECT)"
    return
  fi
  if [ -n "$image_dir" ]; then
    mkdir -p "$image_dir"
    images=$(mktemp -d "$(realpath "$image_dir")/sluice-speed.XXXXXX")
  fi
  # mounted over each other they are all listed; the last is the one that is seen
  file_system=$(findmnt -n -o FSTYPE -T "$images" | tail -n 1) || die "which file system is $images on?"
  if [ -z "$direct" ]; then storage="$file_system, through the page cache"; return; fi
  dd if=/dev/zero of="$images/probe" bs=4096 count=1 oflag=direct status=none 2>/dev/null || die "the $file_system of $images has no O_DIRECT: leave --direct out, or name a folder of another file system with --image-dir"
  rm "$images/probe"
  storage="$file_system, around the page cache (O_DIRECT)"
}

# What storage_begin found, for a machine.
storage_json() {
  jq -n --arg what "$storage" --arg file_system "$file_system" --arg delay "$delay" --arg direct "$direct" \
    '{what: $what, file_system: (if $file_system == "" then null else $file_system end), direct: ($direct != ""), delay_ms: ($delay | if . == "" then 0 else tonumber end)}'
}

# storage_image NAME    sets `image`, a new one of 128 MiB
storage_image() {
  if [ -n "$delay" ]; then
    local tries=0
    timeout -k 5 "$limit" "$work/late" $((128 << 20)) "$delay" </dev/null >"$work/late-$1" 2>"$work/late-$1.log" &
    late_pid[$1]=$!
    until [ -s "$work/late-$1" ]; do
      if ! kill -0 "${late_pid[$1]}" 2>/dev/null || [ $((tries += 1)) -gt 200 ]; then die "no storage behind a delay: $(cat "$work/late-$1.log")"; fi
      sleep 0.02
    done
    image=$(cat "$work/late-$1")
    return
  fi
  image=$images/$1.img
  # every block is there, as on a disk in use, and nothing of it is still on its way to the device when the clock runs
  head -c $((128 << 20)) /dev/urandom >"$image"
  sync "$image"
}

# storage_drop NAME    the image is no longer in use
storage_drop() {
  rm -f "$images/$1.img"
  if [ -n "${late_pid[$1]:-}" ]; then
    kill "${late_pid[$1]}" 2>/dev/null || true
    wait "${late_pid[$1]}" 2>/dev/null || true
    unset "late_pid[$1]"
  fi
}

# Ends all of it, for an EXIT trap.
storage_end() {
  local name
  for name in "${!late_pid[@]}"; do storage_drop "$name"; done
  if [ "${images:-$work}" != "$work" ]; then rm -rf "$images"; fi
}
