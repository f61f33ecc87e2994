# Jobs in which the ground moves under a living back-end: migration, hot plug, more memory, unbinding, resets, many disks.
# As in jobs.sh each gets its folder and what comes after the dash of its name, and reports rows. Sourced after jobs.sh, machine.sh.
#
# The witness is Tests/Guests/sequence.c: windows of blocks overwritten in order, so that what is lost, late, torn or done twice
# shows, and memory that was filled from the disk and is looked at for as long as the guest runs.

# The sequence program of the host, the same source as the guest's.
witness() { "$(dirname "$("$tree/Scripts/lab/initramfs" 6.1)")/sequence" "$@"; }

# Only vhost-user back-ends, and the peer's knows no IOMMU.
adverse_able() {
  if able "$2" && [ "$backend" != qemu ]; then return; fi
  row skipped "$1" "$backend cannot"
  return 1
}

# The end of a job: reason or row, and nothing left behind.    adverse_end NAME REASON DETAILS
adverse_end() {
  machines_abandon
  if [ -z "$2" ]; then row ok "$1" "$3"; else row failed "$1" "$2${3:+ ($3)}"; fi
  rm -f "$folder"/*.img "$folder"/*.state
}

# What the guest said went wrong, in all talks of a job.
complaints() { cat "$folder"/talk.log "$folder"/*/talk.log 2>/dev/null | grep -hE 'SLUICE-GUEST (error|.*verdict=bad)' | head -n 2 | tr '\n' ' ' || true; }

# Does the image hold all that was acknowledged? Prints the figures; fails with what is wrong.    judged NAME IMAGE THREADS TALK...
judged() {
  local name=$1 image=$2 threads=$3
  shift 3
  cat "$@" | witness check "$image" "$name" "$threads" 2>>"$folder/check.log" | tail -n 2 | tr '\n' ' '
  return "${PIPESTATUS[1]}"
}

# A sample of the back-end must show no faults, no lost pages, and the path of the mode.
sampled() {
  [ "$backend" = sluice ] || return 0
  backend_explain "$folder" "$1" "$folder/$1.json" || { echo "sluice explain gave no answer"; return; }
  jq -r --arg path "$(if [ "$2" = off ]; then echo physical; else echo platform; fi)" '
    if .address_path != $path then "the address path of \(.name // "the back-end") is \(.address_path)"
    elif .faults != 0 then "\(.faults) faults" elif .lost_pages != 0 then "\(.lost_pages) pages lost" else empty end' "$folder/$1.json"
}

# Live migration there and back between two back-ends of one image, under writes: each machine has a back-end of its own, and the
# image is locked by whichever runs. Then once more through a file.
job_migrate() {
  local folder=$1 mode=$2 started reason= hop here=a there=b times= figures=
  local name="$mode live migration" threads=16
  started=$(date +%s%N)
  adverse_able "$name" "$mode" || return 0
  truncate -s 64M "$folder/disk.img"
  if [ "$backend" = sluice ]; then SLUICE_OPTIONS="${SLUICE_OPTIONS:-} --lock running"; fi
  for hop in a b; do backend_start "$folder" $hop "$folder/disk.img" 1 || reason="the back-end $hop did not start"; done
  local words="sluice.vda=sequence sluice.threads=$threads sluice.arena=48"
  # boot NAME NUMBER [QEMU-OPTION...]: a machine on the back-end of that name
  boot() {
    local machine_options=() side=$1 place=$folder/$2-$1
    shift 2
    machine_disk 0 "$folder/$side.sock" "$mode"
    machine_start "$place" "$mode" "$words" "${machine_options[@]}" "$@"
  }
  [ -n "$reason" ] || boot a 0 || reason="the first machine did not start"
  if [ -z "$reason" ] && ! hear "$folder/0-a" "ack" 20 60; then reason="the guest wrote nothing"; fi
  local source=$folder/0-a target status
  for hop in 1 2 3 4; do
    [ -z "$reason" ] || break
    target=$folder/$hop-$there
    if [ $hop -le 2 ]; then
      boot $there $hop -incoming "unix:$folder/migration.sock" || { reason="hop $hop: the destination did not start"; break; }
    fi
    # slow at first, so that the guest goes on writing into memory that was copied already, then as fast as it can
    ask "$source" migrate-set-parameters '{"max-bandwidth":20000000,"downtime-limit":300}' >/dev/null
    if [ $hop -le 2 ]; then ask "$source" migrate "{\"uri\":\"unix:$folder/migration.sock\"}" >/dev/null
    else ask "$source" migrate "{\"uri\":\"exec:cat > $folder/machine.state\"}" >/dev/null; fi
    migrated() { status=$(ask "$source" query-migrate); case $(jq -r .status <<<"$status") in completed|failed|cancelled) ;; *) ! machine_runs "$source" ;; esac; }
    if ! until_holds 12 migrated; then
      ask "$source" migrate-set-parameters '{"max-bandwidth":4000000000,"downtime-limit":3000}' >/dev/null
      until_holds 60 migrated || true
    fi
    if [ "$(jq -r .status <<<"$status")" != completed ]; then reason="hop $hop: migration is $(jq -r '.status, .["error-desc"] // ""' <<<"$status" | tr '\n' ' ')"; break; fi
    times+="${times:+; }$(jq -r '"\(.downtime) ms down of \(.["total-time"]) ms, \(.ram["dirty-sync-count"]) passes"' <<<"$status")"
    ask "$source" quit >/dev/null || true
    machine_ended "$source" 10 || machine_drop "$source"
    if [ $hop -gt 2 ]; then boot $there $hop -incoming "exec:cat $folder/machine.state" || { reason="hop $hop: the machine of the file did not start"; break; }; fi
    if ! hear "$target" "ack" 20 60; then reason="hop $hop: the guest does not go on"; break; fi
    reason=$(sampled $there "$mode")
    source=$target
    set -- $there $here; here=$1 there=$2
  done
  if [ -z "$reason" ]; then
    tell "$source" stop
    machine_ended "$source" 40 || reason="the guest did not end"
    grep -q 'seconds=.*verdict=ok' "$source/talk.log" || reason=${reason:-the guest says no good verdict}
    figures="$(sed -n 's/.*end .*\(arena_reads=.*\)/\1/p' "$source/talk.log"), "
  fi
  machines_abandon
  for hop in a b; do backend_stop "$folder" $hop || reason=${reason:-the back-end $hop did not end cleanly}; done
  figures+=$(judged vda "$folder/disk.img" $threads "$folder"/?-?/talk.log) || reason=${reason:-$figures}
  reason=${reason:-$(complaints)}
  adverse_end "$name" "$reason" "$figures; $times"
}
