# The lab's system whose disk is driven by UEFI firmware before Linux gets it: `Scripts/guests lab-ovmf`. Sourced after systems.sh.

# What edk2's driver takes of what is offered (its VirtioBlkDxe reads the bits one by one), besides bit 33.
ovmf_features="6,9,10,32"

# ovmf_boot FOLDER    boots it once; sets `failure`. The firmware copies a file on the disk, then starts the kernel that is on it;
# Linux reads the half of the disk that holds all this, and writes the other.
ovmf_boot() {
  local folder=$1 words disks=() watcher=
  failure=
  mkdir -p "$folder"
  words="console=ttyS0 loglevel=5 tsc=reliable no_timer_check mitigations=off intel_iommu=on iommu.strict=1 panic=-1 sluice.vda=raw sluice.vdb=raw"
  head -c $((2 * MiB)) /dev/urandom >"$folder/file"
  head -c $((8 * MiB)) /dev/urandom >"$folder/vdb.img"
  original[vdb]=$(sum <"$folder/vdb.img")
  truncate -s 16M "$folder/vdb.img"
  if [ "$backend" = sluice ]; then words+=" sluice.rng=rng"; fi
  "$tree/Scripts/lab/bootdisk" "$folder/vda.img" "$ovmf_half" "$folder/file" "$words" >>"$folder/bootdisk.log" 2>&1 \
    || { failure="the boot disk could not be made"; return; }
  backend_start "$folder" vda "$folder/vda.img" 2 && backend_start "$folder" vdb "$folder/vdb.img" 2 \
    || { failure="the back-end did not start"; return; }
  disks=("$(backend_disk "$folder" vda),workload=raw,ring=split,queues=2" "$(backend_disk "$folder" vdb),workload=raw,ring=packed,queues=2")
  if [ "$backend" = sluice ]; then
    backend_start_entropy "$folder" rng || { failure="the back-end did not start"; return; }
    disks+=("rng=$folder/rng.sock,workload=rng")
    ovmf_watch "$folder" &
    watcher=$!
  fi
  export sluice backend folder tree
  "$tree/Scripts/lab/guest" --iommu strict --bit "$bit" --firmware --smp 2 --timeout "$limit" --folder "$folder" \
    --at done ". '$tree/Scripts/lab/lab.sh'; . '$tree/Scripts/lab/backend.sh'; backend_explain \"\$folder\" \$1 \"\$folder/\$1.json\"" \
    "${disks[@]}" 2>"$folder/guest.log" || failure=$(sed 's/^guest: //' "$folder/guest.log" | tail -n 1)
  if [ -n "$watcher" ]; then kill "$watcher" 2>/dev/null || true; wait "$watcher" 2>/dev/null || true; fi
}

# Keeps the last that the boot disk's back-end said before Linux took the disk: Linux wants EVENT_IDX, this firmware does not. When
# it hands over it resets the disk, and after that no address path is in force.
ovmf_watch() {
  while sleep 0.2; do
    backend_explain "$1" vda "$1/now.json" || continue
    if jq -e '.completions > 0 and .address_path and (.negotiated_features | index(29) | not)' "$1/now.json" >/dev/null; then cp "$1/now.json" "$1/firmware.json"; fi
  done 2>/dev/null
}

# What the firmware did: it read the kernel and the initramfs, or nothing else would have run, and it copied a file.
ovmf_firmware_wrong() {
  local image=$folder/vda.img expected
  if [ "$(said vda verdict)" = "" ]; then echo "${failure:-the guest was not started from the disk}"
  elif ! mcopy -n -i "$image" ::copy "$folder/copy" 2>>"$folder/bootdisk.log"; then echo "the firmware made no copy of the file"
  elif ! cmp -s "$folder/file" "$folder/copy"; then echo "the firmware's copy of the file is another one"
  elif [ "$backend" != sluice ]; then return
  elif [ ! -s "$folder/firmware.json" ]; then echo "sluice explain gave no answer while the firmware ran"
  else
    expected=$(jq -nc "[$ovmf_features$([ "$bit" = off ] || echo ,33)]")
    if [ "$(jq -c .negotiated_features "$folder/firmware.json")" != "$expected" ]; then
      echo "the firmware negotiated $(jq -c .negotiated_features "$folder/firmware.json"), expected $expected"
    else wrong_figures "$folder/firmware.json" "$([ "$bit" = off ] && echo off || echo strict)"
    fi
  fi
}

# Linux on the disk it came from.
ovmf_linux_wrong() {
  local image=$folder/vda.img half=$((ovmf_half * MiB))
  if [ "$(said vda verdict)" != ok ]; then echo "${failure:-no verdict}"
  elif [ "$(said vda group)" != DMA ]; then echo "the IOMMU group is $(said vda group), expected DMA"
  elif [ "$(said vda access_platform)" != "$([ "$bit" = on ] && echo yes || echo no)" ]; then echo "bit 33 is '$(said vda access_platform)' in the guest"
  elif [ "$(said vda "step=read md5")" != "$(head -c "$half" "$image" | sum)" ]; then echo "the guest read other bytes than the image holds"
  elif [ "$(tail -c "$half" "$image" | sum)" != "$(said vda "step=write md5")" ]; then echo "the image does not hold what the guest wrote"
  else account_wrong vda "$folder/vda.json" "$([ "$bit" = off ] && echo off || echo strict)"
  fi
}

# ovmf_row NAME CHECK    a row, with the peer's answer if it failed
ovmf_row() {
  local reason=$stopped
  reason=${reason:-$("$2" "$1")}
  if [ -z "$reason" ]; then lab_row ok; return; fi
  bytes=0
  if [ "$1" != rng ]; then
    reason+="; with QEMU's own device: $(
      backend=qemu BACKEND=qemu backend_pid=()
      if [ ! -e "$folder-qemu" ]; then ovmf_boot "$folder-qemu"; fi
      folder=$folder-qemu
      found=$("$2" "$1")
      echo "${found:-it works}")"
  fi
  lab_row failed "$reason"
}

lab_ovmf() {
  local name stopped ovmf_half=24
  front_end="QEMU $(qemu-system-x86_64 --version | sed -n 's/.*version \([0-9.]*\).*/\1/p')" iommu=strict
  for bit in off on; do
    started=$(date +%s%N) folder=$job_folder/$bit expected_path=physical
    if [ "$bit" = on ]; then expected_path=platform; fi
    ovmf_boot "$folder"
    took=$(( ($(date +%s%N) - started) / 100000000 ))
    for name in vda vdb rng; do
      stopped=
      backend_stop "$folder" $name || stopped="the back-end did not end cleanly"
      lab_clear
      if [ $name = vda ]; then
        device="blk (firmware)" ring=split bytes=$((4 * MiB))
        lab_figures "$folder/firmware.json"
        negotiated=$(jq -r '.negotiated_features | map(tostring) | join(",")' "$folder/firmware.json" 2>/dev/null) || true
        ovmf_row vda ovmf_firmware_wrong
        lab_clear
        device="blk (Linux)" ring=split bytes=$((2 * ovmf_half * MiB))
      elif [ $name = vdb ]; then device=blk ring=packed bytes=$((16 * MiB))
      else device=rng ring=$(said rng ring) bytes=65536
      fi
      lab_figures "$folder/$name.json"
      negotiated=$(said $name features)
      case $name in vda) ovmf_row vda ovmf_linux_wrong ;; *) ovmf_row $name lab_wrong ;; esac
    done
    rm -f "$folder"/*.img
  done
  rm -f "$job_folder"/*-qemu/*.img
  : >"$job_folder/reported"
}
