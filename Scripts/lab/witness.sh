# The witness of the adverse jobs, looked at itself: it must see what it is there to see. Sourced after adverse.sh.

# An image that writers left is right, and wrong as soon as one byte of it is another, a block stands in its neighbour's place, a
# window is empty, or the newest writes are those that came before them.
job_witness() {
  local folder=$1 started name=witness image=$1/disk.img talk=$1/talk.log threads=16 seen=0 answer tampering witness_path
  started=$(date +%s%N)
  witness_path=$(witness_found)
  truncate -s 64M "$image" "$folder/before.img"
  if ! witness write "$folder/before.img" vda $threads 199 0 </dev/null >"$folder/before.log" 2>&1; then
    row skipped $name "no direct writes to $folder: $(tail -n 1 "$folder/before.log")"
    return
  fi
  witness write "$image" vda $threads 200 0 </dev/null >"$talk"
  if ! witness check "$image" vda $threads <"$talk" >"$folder/check.log"; then row failed $name "nothing is wrong, and it says $(tail -n 1 "$folder/check.log")"; return; fi
  blocks() { dd of="$folder/wrong.img" bs=4096 conv=notrunc status=none "$@"; }
  for tampering in torn order lost lost-newest; do
    cp --sparse=always "$image" "$folder/wrong.img"
    case $tampering in
      torn) dd if="$image" bs=1 skip=$(((3 * 64 + 17) * 4096 + 100)) count=1 status=none | tr '\0-\377' '\1-\377\0' \
        | dd of="$folder/wrong.img" bs=1 seek=$(((3 * 64 + 17) * 4096 + 100)) conv=notrunc status=none ;;
      order) blocks if="$image" skip=$((5 * 64 + 10)) seek=$((5 * 64 + 11)) count=1 ;;
      lost) blocks if=/dev/zero seek=$((7 * 64)) count=64 ;;
      lost-newest) cp --sparse=always "$folder/before.img" "$folder/wrong.img" ;;
    esac
    if answer=$(witness check "$folder/wrong.img" vda $threads <"$talk"); then row failed $name "it does not see $tampering"; return; fi
    if ! grep -q "SLUICE-GUEST error disk=vda ${tampering%-*} " <<<"$answer"; then row failed $name "of $tampering it says $(head -n 1 <<<"$answer")"; return; fi
    seen=$((seen + 1))
  done
  row ok $name "$seen kinds of wrong images seen, and nothing in a right one"
  rm -f "$folder"/*.img
}
