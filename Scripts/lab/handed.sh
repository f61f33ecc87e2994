# The lab's system whose disk goes to a user-space process in the guest, through vfio-pci: `Scripts/guests lab-vfio`. Sourced after
# systems.sh; what happens in the guest is in Tests/Guests/handed.c and Tests/Guests/workloads/handed.

# handed_boot FOLDER    boots it once; sets `failure`
handed_boot() {
  local folder=$1 explain
  failure=
  mkdir -p "$folder"
  head -c $((8 * MiB)) /dev/urandom >"$folder/vda.img"
  original[vda]=$(sum <"$folder/vda.img")
  truncate -s 16M "$folder/vda.img"
  # one queue, for the process has no use for more: QEMU would ask on for the used ring of a second one that the kernel once had
  backend_start "$folder" vda "$folder/vda.img" 1 || { failure="the back-end did not start"; return; }
  explain=". '$tree/Scripts/lab/lab.sh'; . '$tree/Scripts/lab/backend.sh'; backend_explain \"\$folder\" vda \"\$folder"
  export sluice backend folder tree
  "$tree/Scripts/lab/guest" --iommu strict --bit "$bit" --vfio --smp 2 --timeout "$limit" --folder "$folder" \
    --at kernel "$explain/kernel.json\"" --at handed "$explain/handed.json\"" --at outside "$explain/outside.json\"" \
    --at done "$explain/done.json\"" "$(backend_disk "$folder" vda),workload=handed,ring=split,queues=1" \
    2>"$folder/guest.log" || failure=$(sed 's/^guest: //' "$folder/guest.log" | tail -n 1)
}

# handed_wrong    prints what is wrong with the data and with what the back-end says, nothing if all is as it must be
handed_wrong() {
  local image=$folder/vda.img figures=$folder/handed.json
  if [ "$bit" = off ]; then figures=$folder/done.json; fi
  if [ -n "$failure" ]; then echo "$failure"
  elif [ "$(said vda "step=kernel-read md5")" != "${original[vda]}" ]; then echo "the kernel read other bytes than the image held"
  elif [ "$(said vda "step=read md5")" != "${original[vda]}" ]; then echo "other bytes were read than the image held"
  elif [ "$(head -c $((8 * MiB)) "$image" | sum)" != "${original[vda]}" ]; then echo "the half that was only read changed"
  elif [ "$(tail -c $((8 * MiB)) "$image" | sum)" != "$(said vda "step=write md5")" ]; then echo "the image does not hold what was written"
  elif [ "$bit" = on ] && ! grep -q 'disk=vda step=handed .*features=.*33' "$folder/talk.log"; then echo "the process did not take bit 33"
  elif [ "$bit" = off ] && ! grep -q 'step=refused why=VIRTIO_F_ACCESS_PLATFORM_is_not_offered' "$folder/talk.log"; then
    echo "the process did not refuse"
  else account_wrong vda "$figures" "$([ "$bit" = off ] && echo off || echo strict)"
  fi
}

# What the process tried outside of its memory, and against its permissions: every request failed in the guest, was counted here, and moved nothing.
handed_outside_wrong() {
  local tried
  tried=$(grep -c 'disk=vda step=outside ' "$folder/talk.log" || true)
  if [ "$tried" != 6 ]; then echo "$tried requests outside of the process's memory instead of 6"
  elif [ "$(grep -c 'step=outside .* status=[1-9-].* canary=kept' "$folder/talk.log")" != 6 ]; then echo "one succeeded or wrote"
  elif [ -z "$(said vda "step=iommu faults")" ]; then echo "the IOMMU reported nothing to the guest's kernel"
  elif [ "$backend" = sluice ]; then
    jq -r 'if .faults != 6 then "\(.faults) faults counted, expected 6"
      elif .lost_pages != 0 or .failed_sessions != 0 then "something was lost" else empty end' "$folder/outside.json" 2>&1 || true
  fi
}

lab_vfio() {
  local reason peer
  front_end="QEMU $(qemu-system-x86_64 --version | sed -n 's/.*version \([0-9.]*\).*/\1/p')"
  for bit in off on; do
    started=$(date +%s%N) folder=$job_folder/$bit expected_path=physical reason= peer=
    if [ "$bit" = on ]; then expected_path=platform; fi
    handed_boot "$folder"
    took=$(( ($(date +%s%N) - started) / 100000000 ))
    lab_clear
    ring=split bytes=$((16 * MiB))
    device="blk (process)"
    # the process refused, and the kernel did the work
    if [ "$bit" = off ]; then device="blk (process refuses)"; fi
    backend_stop "$folder" vda || reason="the back-end did not end cleanly"
    reason=${reason:-$(handed_wrong)}
    negotiated=$(said vda features)
    lab_figures "$folder/$([ "$bit" = on ] && echo handed || echo "done").json"
    if [ -z "$reason" ]; then lab_row ok; else bytes=0; peer=$(handed_peer handed_wrong); lab_row failed "$reason; $peer"; fi
    if [ "$bit" = on ]; then
      device="blk (outside)" bytes=
      lab_figures "$folder/outside.json"
      reason=${reason:-$(handed_outside_wrong)}
      if [ -z "$reason" ]; then lab_row ok; else lab_row failed "$reason; ${peer:-$(handed_peer handed_outside_wrong)}"; fi
    fi
    rm -f "$folder/vda.img"
  done
  : >"$job_folder/reported"
}

# What QEMU's own device does where ours failed: no other back-end speaks vhost-user with the bit.    handed_peer CHECK
handed_peer() {
  local answer
  answer=$(
    backend=qemu BACKEND=qemu backend_pid=()
    handed_boot "$folder-qemu"
    folder=$folder-qemu
    if [ -n "$failure" ]; then echo "$failure"; else "$1"; fi
    rm -f "$folder/vda.img"
  ) || answer=${answer:-it could not be run}
  echo "with QEMU's own device: ${answer:-it works}"
}
