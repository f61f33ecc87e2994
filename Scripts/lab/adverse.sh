# Jobs in which the ground moves under a living back-end: migration, hot plug, more memory, unbinding, resets, many disks.
# As in jobs.sh each gets its folder and what comes after the dash of its name, and reports rows. Sourced after jobs.sh, machine.sh.
#
# The witness is Tests/Guests/sequence.c: windows of blocks overwritten in order, so that what is lost, late, torn or done twice
# shows, and memory that was filled from the disk and is looked at for as long as the guest runs.

# The longest first, so that none of them is left alone at the end.
adverse_jobs="migrate-strict many-strict migrate-off plug-strict plug-off restart-strict restart-off toggle-strict resets-strict"
adverse_jobs+=" resets-off many-off memory-strict memory-off rebind-strict rebind-off qtests"

# The sequence program of the host, the same source as the guest's. A job that wants it often looks once where it is.
witness() { "${witness_path:-$(witness_found)}" "$@"; }
witness_found() { echo "$(dirname "$("$tree/Scripts/lab/initramfs" 6.1)")/sequence"; }

# Only vhost-user back-ends, and the peer's knows no IOMMU.
adverse_able() {
  if able "$2" && [ "$backend" != qemu ]; then return; fi
  row skipped "$1" "$backend cannot"
  ground_row "not run" "$1" "" "$backend cannot"
  return 1
}

# The end of a job: reason or row, and nothing left behind.    adverse_end NAME REASON DONE FIGURES
adverse_end() {
  local said
  machines_abandon
  said=$(complaints)
  set -- "$1" "$2${said:+${2:+: }$said}" "$3" "$4"
  if [ -z "$2" ]; then row ok "$1" "$3; $4"; else row failed "$1" "$2 ($3; $4)"; fi
  ground_row "$(if [ -z "$2" ]; then echo ok; else echo failed; fi)" "$1" "$3" "$2"
  rm -f "$folder"/*.img "$folder"/*.state
}

# What the table says of a job, as a line of $LAB_GROUND.    ground_row VERDICT NAME DONE REASON
# Acknowledged writes are those that the host looked for in the image at the end, looks those of the guest at what it had read into
# its memory, faults those of the back-end and of the guest's IOMMU, wrong all that the witness complained of, here and there.
ground_row() {
  local log talk acknowledged looks faults
  talk=$(for log in "$folder"/talk.log "$folder"/*/talk.log; do if [ -e "$log" ]; then cat "$log"; fi; done)
  touch "$folder/checked.log"
  total() { awk '{ n += $1 } END { print n + 0 }'; }
  acknowledged=$(sed -n 's/ writes acknowledged.*//p' "$folder/checked.log" | total)
  looks=$(sed -n 's/.* arena_looks=//p' <<<"$talk" | total)
  faults=$({ echo 0; sed -n 's/.* faults=\([0-9]*\) .*/\1/p' <<<"$talk"; find "$folder" -maxdepth 1 -name '*.json' -exec jq '.faults // 0' {} +; } | sort -n | tail -n 1)
  jq -nc --arg job "${folder##*/}" --arg title "${2#"$mode" }" --arg iommu "$mode" --arg done "$3" --arg reason "$4" \
    --argjson acknowledged "$acknowledged" --argjson looks "$looks" --argjson faults "$faults" \
    --argjson wrong "$({ cat "$folder/checked.log"; echo "$talk"; } | grep -c 'SLUICE-GUEST error' || true)" \
    --argjson seconds "$(( ($(date +%s%N) - started) / 100000000 ))" --arg backend "$backend" --arg verdict "$1" '
    $ARGS.named | .seconds /= 10' >>"${LAB_GROUND:-$work/ground.jsonl}"
}

# What the guest said went wrong, in all talks of a job.
complaints() { cat "$folder"/talk.log "$folder"/*/talk.log 2>/dev/null | grep -hE 'SLUICE-GUEST (error|.*verdict=bad)' | head -n 2 | tr '\n' ' ' || true; }

# Does the image hold all that was acknowledged? Prints the figures; fails with what is wrong.    judged NAME IMAGE THREADS TALK...
judged() {
  local name=$1 image=$2 threads=$3
  shift 3
  cat "$@" | witness check "$image" "$name" "$threads" 2>>"$folder/check.log" | tee -a "$folder/checked.log" | tail -n 2 | tr '\n' ' '
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

# Live migration there and back under writes, and through a file: no write is lost, no fault invented. (R132–R135, R138, R141)
# Each machine has a back-end of its own; the image is one, and locked by whichever runs.
job_migrate() {
  local folder=$1 mode=$2 started reason= hop here=a there=b times= down= figures=
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
    down+="${down:+, }$(jq -r .downtime <<<"$status")"
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
  adverse_end "$name" "$reason" "twice live, twice through a file, $down ms down" "$times; $figures"
}

# One machine with one disk on one back-end, and what to do to it: begin NAME MODE WORDS [QEMU-OPTION...] boots; says why not in `reason`.
adverse_begin() {
  local mode=$1 words=$2 machine_options=()
  shift 2
  truncate -s 64M "$folder/disk.img"
  backend_start "$folder" disk "$folder/disk.img" 1 || { reason="the back-end did not start"; return; }
  machine_disk 0 "$folder/disk.sock" "$mode"
  machine_start "$folder" "$mode" "$words" "${machine_options[@]}" "$@" || reason="the machine did not start"
}

# The same at the end: the guest's own verdict, the back-end's figures, the image.    adverse_finish NAME MODE DETAILS THREADS
adverse_finish() {
  local figures verdict
  if [ -z "$reason" ]; then
    machine_ended "$folder" 60 || reason="the guest did not end"
    verdict=$(sed -n 's/.*seconds=.*verdict=//p' "$folder/talk.log" | tail -n 1)
    [ "$verdict" = ok ] || reason=${reason:-the guest\'s verdict is \'$verdict\'}
  fi
  machines_abandon
  backend_stop "$folder" disk || reason=${reason:-the back-end did not end cleanly}
  figures=$(judged vda "$folder/disk.img" "$4" "$folder/talk.log") || reason=${reason:-$figures}
  adverse_end "$1" "$reason" "$3" "$figures"
}

# The disk is pulled out and put in again under writes, with a back-end that lives through all of it. (R066) Every other time the new
# disk gets the socket that the old one had: QEMU keeps it open, and the back-end's second life on it begins at SET_OWNER.
job_plug() { plug "$1" "$2" "$2 hot plug" lives; }
# The same with requests that nobody ends: the back-end is killed, and only then the disk is pulled out. It is there again at once, or
# when the guest has been waiting for two seconds.
job_restart() { plug "$1" "$2" "$2 hot plug and a killed back-end" dies; }

# plug FOLDER MODE NAME lives|dies
plug() {
  local folder=$1 mode=$2 started reason= turn=0 turns=${TURNS:-10} threads=16 deleted name=$3 back_end=$4 waited=0 again= same=0
  started=$(date +%s%N)
  adverse_able "$name" "$mode" || return 0
  if [ "$back_end" = dies ]; then again=,reconnect=1; fi
  machine_socket_more=$again adverse_begin "$mode" "sluice.vda=plug sluice.threads=$threads"
  while [ -z "$reason" ]; do
    until_holds 60 more_heard "$folder" "begin" $((turn + 1)) && hear "$folder" "ack" 3 60 || { reason="after turn $turn nothing was written"; break; }
    reason=$(sampled disk "$mode")
    [ -z "$reason" ] && [ $turn -lt "$turns" ] || break
    turn=$((turn + 1))
    if [ "$back_end" = dies ]; then
      kill -KILL "${backend_pid[disk]}"
      wait "${backend_pid[disk]}" 2>/dev/null || true
    fi
    ask "$folder" device_del '{"id":"disk0"}' >/dev/null || { reason="turn $turn: the disk cannot be taken out"; break; }
    deleted() { [ "$(jq -r 'select(.event == "DEVICE_DELETED" and .data.device == "disk0") | .event' "$folder/qmp.log" | grep -c .)" -ge $turn ]; }
    if [ "$back_end" = dies ]; then
      if [ $((turn % 2)) = 0 ]; then
        sleep 2
        deleted || waited=$((waited + 1))
      fi
      backend_start "$folder" disk "$folder/disk.img" 1 || { reason="the back-end did not start again after turn $turn"; break; }
    fi
    until_holds 40 deleted || { reason="turn $turn: the guest did not let go of the disk"; break; }
    if [ "$back_end" = lives ] && [ $((turn % 2)) = 0 ]; then same=$((same + 1))
    elif ! ask "$folder" chardev-remove '{"id":"chardev0"}' >/dev/null; then reason="turn $turn: the connection stays"; break
    else ask "$folder" chardev-add "{\"id\":\"chardev0\",\"backend\":{\"type\":\"socket\",\"data\":{\"server\":false,${again:+\"reconnect\":1,}\"addr\":{\"type\":\"unix\",\"data\":{\"path\":\"$folder/disk.sock\"}}}}}" >/dev/null \
      || { reason="turn $turn: no connection"; break; }
    fi
    # QEMU says that the old disk is gone a moment before it lets go of the socket
    added() {
      ask "$folder" human-monitor-command "{\"command-line\":\"device_add vhost-user-blk-pci,id=disk0,chardev=chardev0,$(machine_disk_options 0 "$mode")\"}" >"$folder/added.log" \
        && ! grep -q "in use" "$folder/added.log"
    }
    until_holds 10 added || { reason="turn $turn: the disk cannot be put in: $(cat "$folder/added.log")"; break; }
  done
  if [ "$back_end" = dies ] && [ $turn -gt 1 ] && [ $waited = 0 ]; then reason=${reason:-no request was ever in flight}; fi
  [ -n "$reason" ] || tell "$folder" stop
  adverse_finish "$name" "$mode" "$turn times out and in$(if [ $same -gt 0 ]; then echo ", $same times on the same socket"; fi)${again:+, each time without its back-end, $waited times it waited}" $threads
}

# Memory is added to the running machine, and the disk reads into it; then it is taken away while the disk reads into it. (R069)
job_memory() {
  local folder=$1 mode=$2 started reason= threads=8 high left more=402653184
  local name="$mode memory added and removed"
  started=$(date +%s%N)
  adverse_able "$name" "$mode" || return 0
  MACHINE_MORE_MEMORY=,slots=4,maxmem=2G
  # what is to go again may hold nothing that cannot be moved
  adverse_begin "$mode" "sluice.vda=memory sluice.threads=$threads memhp_default_state=online_movable"
  [ -n "$reason" ] || until_holds 60 more_heard "$folder" "disk=vda pause=small" 1 || reason="the guest does not come up"
  # memory_is WHEN BYTES    what the back-end says, against what it said before and these
  memory_is() {
    reason=$(sampled disk "$mode")
    [ "$backend" = sluice ] || return 0
    reason=${reason:-$(jq -rs --argjson more "$2" --arg when "$1" 'map(.memory_bytes) | if .[1] != .[0] + $more
      then "\($when) the back-end knows \(.[1]) bytes of memory, before it was \(.[0])" else empty end' "$folder/before.json" "$folder/disk.json")}
  }
  high() { sed -n 's/.*begin .*high_pages=//p' "$folder/talk.log" | tail -n 1; }
  if [ -z "$reason" ]; then
    backend_explain "$folder" disk "$folder/before.json"
    ask "$folder" object-add "{\"qom-type\":\"memory-backend-memfd\",\"id\":\"more\",\"size\":$more,\"share\":true}" >/dev/null \
      && ask "$folder" device_add '{"driver":"pc-dimm","id":"dimm","memdev":"more"}' >/dev/null || reason="no memory can be added"
    tell "$folder" go
  fi
  if [ -z "$reason" ]; then
    hear "$folder" "ack" 20 90 || reason="with more memory the guest writes nothing"
    [ -n "$reason" ] || memory_is "with more memory" $more
    high=$(high)
    if [ "${high:-0}" -lt 10000 ]; then reason=${reason:-only ${high:-none} of the pages that the disk reads into are new}; fi
  fi
  if [ -z "$reason" ]; then
    tell "$folder" less
    until_holds 60 more_heard "$folder" "begin" 2 && hear "$folder" "ack" 5 60 || reason="with less in use the guest writes nothing"
    left=$(high)
    if [ "${left:-0}" -lt 1000 ]; then reason=${reason:-only ${left:-none} of the pages in use are of the memory that is to go}; fi
  fi
  if [ -z "$reason" ]; then
    ask "$folder" device_del '{"id":"dimm"}' >/dev/null || reason="the memory cannot be taken away"
    taken() { [ "$(jq -r 'select((.event == "DEVICE_DELETED" and .data.device == "dimm") or .event == "MEM_UNPLUG_ERROR") | .event' "$folder/qmp.log" | grep -c .)" -ge 1 ]; }
    until_holds 60 taken || reason=${reason:-the guest does not let go of the memory}
    [ "$(events "$folder" MEM_UNPLUG_ERROR)" = 0 ] || reason="the guest says that the memory cannot go"
    [ -n "$reason" ] || ask "$folder" object-del '{"id":"more"}' >/dev/null || reason="the memory stays after its device went"
    [ -n "$reason" ] || hear "$folder" "ack" 20 60 || reason="after the memory went the guest writes nothing"
    [ -n "$reason" ] || memory_is "after the memory went" 0
  fi
  [ -n "$reason" ] || tell "$folder" stop
  adverse_finish "$name" "$mode" "384 MiB added, ${high:-0} pages of it read into, taken away with ${left:-0} in use" $threads
}

# The driver is unbound and bound again under writes, by the guest itself.
job_rebind() {
  local folder=$1 mode=$2 started reason= threads=16
  local name="$mode unbind and bind"
  started=$(date +%s%N)
  adverse_able "$name" "$mode" || return 0
  adverse_begin "$mode" "sluice.vda=rebind sluice.threads=$threads sluice.turns=${TURNS:-12}"
  if [ -z "$reason" ]; then
    until_holds 120 more_heard "$folder" "begin" 6 || reason="the guest is stuck"
    reason=${reason:-$(sampled disk "$mode")}
  fi
  adverse_finish "$name" "$mode" "${TURNS:-12} times unbound" $threads
}

# The machine is reset in the middle of writes, again and again, and nothing of them reaches memory or the image afterwards. (R060)
# The next guest looks twice whether anything still changes; and every third time the machine is held right after the reset, and
# its memory and the image must stay as they are.
job_resets() {
  local folder=$1 mode=$2 started reason= turn=0 turns=${TURNS:-9} threads=32 held=0 memory before after
  local name="$mode resets"
  started=$(date +%s%N)
  adverse_able "$name" "$mode" || return 0
  # a boot for each turn
  local MACHINE_SECONDS=$((limit + turns * limit / 5))
  # the talk is read by one guest after the other: nothing but the last line may wait in it
  adverse_begin "$mode" "sluice.vda=sequence sluice.threads=$threads sluice.arena=16"
  while [ -z "$reason" ]; do
    until_holds 120 more_heard "$folder" "begin" $((turn + 1)) && hear "$folder" "ack" $((2 + turn % 4)) 60 || { reason="after reset $turn nothing was written"; break; }
    [ $turn -lt "$turns" ] || break
    turn=$((turn + 1))
    # at no particular moment
    sleep "0.0$((turn * 37 % 100))"
    ask "$folder" system_reset >/dev/null || { reason="the machine cannot be reset"; break; }
    [ $((turn % 3)) = 0 ] || continue
    ask "$folder" stop >/dev/null
    memory=$(find "/proc/$(pgrep -P "$(cat "$folder/pid")")/fd" -lname '*memfd:memory-backend-memfd*' 2>/dev/null | head -n 1)
    [ -n "$memory" ] || { reason="the machine's memory is nowhere to be found"; break; }
    before="$(sum <"$memory") $(sum <"$folder/disk.img")"
    sleep 0.3
    after="$(sum <"$memory") $(sum <"$folder/disk.img")"
    if [ "${before% *}" != "${after% *}" ]; then reason="reset $turn: guest memory changed while the machine was held"; break; fi
    if [ "$before" != "$after" ]; then reason="reset $turn: the image changed while the machine was held"; break; fi
    held=$((held + 1))
    ask "$folder" cont >/dev/null
  done
  [ -n "$reason" ] || reason=$(sampled disk "$mode")
  [ -n "$reason" ] || tell "$folder" stop
  adverse_finish "$name" "$mode" "$turn resets in the middle of writes, memory and image compared after $held" $threads
}

# As many back-ends as a machine has room for, and one guest with all of the disks.
job_many() {
  local folder=$1 mode=$2 started reason= disks=24 n disk words= total=0 done=0 figures machine_options=() peak
  local name="$mode 24 back-ends"
  started=$(date +%s%N)
  adverse_able "$name" "$mode" || return 0
  for ((n = 0; n < disks; n++)); do
    disk=vd$(printf "\\x$(printf %x $((97 + n)))")
    truncate -s 16M "$folder/$disk.img"
    backend_start "$folder" $disk "$folder/$disk.img" 1 || { reason="back-end $n did not start"; break; }
    machine_disk $n "$folder/$disk.sock" "$mode"
    words+=" sluice.$disk=sequence"
  done
  local MACHINE_SECONDS=$((limit * 2))
  [ -n "$reason" ] || machine_start "$folder" "$mode" "sluice.threads=2 sluice.count=400$words" "${machine_options[@]}" || reason="the machine did not start"
  if [ -z "$reason" ]; then
    until_holds 240 more_heard "$folder" "begin" $disks || reason="of $disks disks only $(heard "$folder" begin) were written"
    for disk in vda vdx; do reason=${reason:-$(sampled $disk "$mode")}; done
    peak=$(for n in "${backend_pid[@]}"; do sed -n 's/^VmHWM:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$n/status"; done | sort -n | tail -n 1)
    [ -n "$reason" ] || machine_ended "$folder" 240 || reason="the guest did not end"
    grep -q 'seconds=.*verdict=ok' "$folder/talk.log" || reason=${reason:-the guest says no good verdict}
  fi
  machines_abandon
  local witness_path
  witness_path=$(witness_found)
  for disk in "${!backend_pid[@]}"; do
    backend_stop "$folder" $disk || reason=${reason:-the back-end of $disk did not end cleanly}
    figures=$(judged $disk "$folder/$disk.img" 2 "$folder/talk.log") || reason=${reason:-$disk: $figures}
    done=$((done + 1)) total=$((total + ${figures%% *}))
  done
  adverse_end "$name" "$reason" "$done disks at once, no back-end larger than ${peak:-0} KiB" "$total writes acknowledged, none lost"
}
