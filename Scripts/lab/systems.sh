# The lab's systems, and the job that runs one of them: `Scripts/guests lab-SYSTEM`. Sourced after jobs.sh.
# Each boots once with VIRTIO_F_ACCESS_PLATFORM (bit 33) off and once with it on, with a split and a packed disk and, where the
# machine has it, the entropy device; every device is a row of $LAB_ROWS, a file of JSON lines.

lab_systems="none strict lazy pt amd virtio swiotlb xen smmu spapr zpci ccw vfio ovmf sun4u qemu10 qemu11 uml libblkio dpdk"

# system_traits NAME    sets what the job has to know of it
system_traits() {
  iommu=$1 path_on=platform front_end= suite= entropy=yes group=
  case $1 in
    none) title="x86-64, no IOMMU" iommu=off path_on=physical group=none ;;
    strict) title="x86-64, VT-d strict" group=DMA ;;
    lazy) title="x86-64, VT-d lazy" group=DMA-FQ ;;
    pt) title="x86-64, VT-d passthrough" group=identity ;;
    # QEMU does not give the entropy device a place its AMD-Vi knows
    amd) title="x86-64, AMD-Vi" ;;
    virtio) title="x86-64, virtio-iommu" ;;
    swiotlb) title="x86-64, swiotlb=force" path_on=physical group=none ;;
    xen) title="Xen 4.17, PV dom0" path_on=physical group=none ;;
    smmu) title="arm64, SMMUv3" group=DMA ;;
    spapr) title="ppc64le, pseries" ;;
    zpci) title="s390x, zPCI" ;;
    qemu10) title="x86-64, VT-d strict" iommu=strict group=DMA suite=trixie ;;
    qemu11) title="x86-64, VT-d strict" iommu=strict group=DMA suite=sid ;;
    ccw) title="s390x, ccw" ;;
    vfio) title="x86-64, VT-d, vfio-pci in the guest" ;;
    ovmf) title="x86-64, OVMF, VT-d strict" group=DMA ;;
    sun4u) title="SPARC64 sun4u, OpenBIOS" ;;
    uml) title="user-mode Linux 6.1" front_end="user-mode Linux" ;;
    libblkio) title="no machine" front_end="libblkio" ;;
    dpdk) title="no machine" front_end="DPDK" ;;
    *) return 1 ;;
  esac
}

# What the table says of one device in one run: system title device bit ring negotiated path requests bytes faults exposure
# seconds are taken from the caller's variables.
#   lab_row ok|failed|skipped [REASON]
lab_row() {
  row "$1" "lab $system $device bit=$bit ${ring:+$ring}" "${2:-}"
  jq -nc --arg system "$system" --arg title "$title" --arg front_end "$front_end" --arg device "$device" --arg bit "$bit" \
    --arg ring "$ring" --arg path "$path" --argjson negotiated "[${negotiated:-}]" --argjson requests "${requests:-null}" \
    --argjson bytes_verified "${bytes:-null}" --argjson faults "${faults:-null}" --argjson exposure_percent "${exposure:-null}" \
    --argjson seconds "$((took / 10)).$((took % 10))" --arg backend "$backend" --arg verdict "$1" --arg reason "${2:-}" '
    $ARGS.named | .verdict |= {"ok": "ok", "failed": "failed", "skipped": "not run"}[.]' >>"${LAB_ROWS:-$work/rows.jsonl}"
}

# Forgets the figures of the row before.
lab_clear() { ring= negotiated= path= requests= bytes= faults= exposure=; }

# lab_figures FILE    takes a row's figures from what `sluice explain --json` said at the device's end
lab_figures() {
  [ -s "$1" ] || return 0
  path=$(jq -r '.address_path // ""' "$1")
  requests=$(jq .completions "$1") faults=$(jq .faults "$1")
  exposure=$(jq 'if .memory_bytes > 0 then .peak_reachable_bytes * 100000 / .memory_bytes | round / 1000 else null end' "$1")
}

# The negotiated bits as the guest reads them and as the back-end tells them must be the same; but where there is nothing to
# translate, QEMU keeps bit 33 to itself.
compare_features() {
  local inside outside=$2
  inside=$(jq -nc "[$1] | sort")
  outside=$(jq -c '.negotiated_features | sort' "$2")
  if [ "$bit" = on ] && [ "$expected_path" = physical ]; then inside=$(jq -nc "$inside - [33]"); fi
  if [ "$inside" != "$outside" ]; then echo "the guest reads the features $inside, the back-end tells $outside"; fi
}

# QEMU 10 and 11 pass on to the guest all that an entropy back-end offers, bit 33 too, and without iommu_platform then do not
# translate what the guest's IOMMU was told: there the back-end has to keep the bit to itself.
entropy_withholds() { [ -n "$suite" ] && [ "$bit" = off ]; }

# account_wrong NAME FILE IOMMU [withheld]    what is wrong with what the back-end said of itself: its figures, and the features beside
# those that the guest reads. Of a peer nothing is known.
account_wrong() {
  local wrong
  if [ "$backend" != sluice ]; then return; fi
  if [ ! -s "$2" ]; then echo "sluice explain gave no answer"; return; fi
  wrong=$(wrong_figures "$2" "$3" "${4:-}")
  if [ -z "$wrong" ]; then wrong=$(compare_features "$(said "$1" features)" "$2"); fi
  echo "$wrong"
}

# lab_wrong NAME    prints what is wrong with a device after its boot, nothing if all is as it must be
lab_wrong() {
  local name=$1 platform=no image=$folder/$1.img
  if [ "$bit" = on ]; then platform=yes; fi
  if [ -n "$failure" ] && [ "$(said "$name" verdict)" != ok ]; then echo "$failure"
  elif [ "$(said "$name" access_platform)" != "$platform" ]; then echo "bit 33 is '$(said "$name" access_platform)' in the guest, expected '$platform'"
  elif [ "$(said "$name" ring)" != "$ring" ]; then echo "asked for a $ring ring, the guest uses $(said "$name" ring)"
  elif [ -n "$group" ] && [ "$(said "$name" group)" != "$group" ]; then echo "the IOMMU group is $(said "$name" group), expected $group"
  elif [ "$iommu" = xen ] && ! grep -q ' hypervisor=xen' "$folder/talk.log"; then echo "the guest does not run under Xen"
  elif [ "$iommu-$bit" = swiotlb-on ] && ! grep -qE ' bounced=[1-9]' "$folder/talk.log"; then echo "nothing went through the swiotlb"
  elif [ "$name" = rng ] && [ "$(said rng "step=entropy bytes")" != 65536 ]; then echo "no entropy arrived"
  elif [ "$name" != rng ] && [ "$(said "$name" "step=read md5")" != "${original[$name]}" ]; then echo "the guest read other bytes than the image held"
  elif [ "$name" != rng ] && [ "$(head -c $((8 * MiB)) "$image" | sum)" != "${original[$name]}" ]; then echo "the half that was only read changed"
  elif [ "$name" != rng ] && [ "$(tail -c $((8 * MiB)) "$image" | sum)" != "$(said "$name" "step=write md5")" ]; then echo "the image does not hold what the guest wrote"
  else
    account_wrong "$name" "$folder/$name.json" "$([ "$expected_path" = physical ] && echo off || echo "$iommu")" \
      "$(if [ "$name" = rng ] && entropy_withholds; then echo withheld; fi)"
  fi
}

# Asks a back-end five times a second, for as long as it lives: what could be reached when, for the picture, and the last that it
# said while a front-end was there. Ends with the job.
#   lab_watch FOLDER NAME [SECONDS]
lab_watch() {
  while sleep "${3:-0.2}"; do
    backend_explain "$1" "$2" "$1/now.json" || continue
    jq -c --argjson at "$(date +%s%3N)" '{at: $at, connected, reachable_bytes, memory_bytes, address_path}' "$1/now.json" >>"$1/samples.jsonl"
    if jq -e '.connected and .completions > 0' "$1/now.json" >/dev/null && more_done "$1/now.json" "$1/last.json"; then cp "$1/now.json" "$1/last.json"; fi
  done 2>/dev/null
}

# Of several connections to one back-end the figures are those of the one that did most.
more_done() { [ ! -s "$2" ] || jq -es '.[0].completions >= .[1].completions' "$1" "$2" >/dev/null; }

# Boots a system once. Sets `failure`; the logs, images and samples are in the folder.
#   lab_boot FOLDER
lab_boot() {
  local folder=$1 name disks=() options=() sampler=
  failure=
  mkdir -p "$folder"
  for name in vda vdb; do
    head -c $((8 * MiB)) /dev/urandom >"$folder/$name.img"
    original[$name]=$(sum <"$folder/$name.img")
    truncate -s 16M "$folder/$name.img"
    backend_start "$folder" "$name" "$folder/$name.img" 2 || { failure="the back-end did not start"; return; }
  done
  disks=("$(backend_disk "$folder" vda),workload=raw,ring=split,queues=2" "$(backend_disk "$folder" vdb),workload=raw,ring=packed,queues=2")
  if [ "$entropy$backend" = yessluice ]; then
    SLUICE_OPTIONS="${SLUICE_OPTIONS:-}$(if entropy_withholds; then echo " --access-platform off"; fi)" \
      backend_start_entropy "$folder" rng || { failure="the back-end did not start"; return; }
    disks+=("rng=$folder/rng.sock,workload=rng")
  fi
  if [ -n "$suite" ]; then options=(--qemu "$tree/Scripts/lab/inside $suite $folder qemu-system-x86_64"); fi
  if [ "$backend" = sluice ]; then
    lab_watch "$folder" vda &
    sampler=$!
  fi
  export sluice backend folder tree
  "$tree/Scripts/lab/guest" --iommu "$iommu" --bit "$bit" --smp 2 --timeout "$limit" --folder "$folder" "${options[@]}" \
    --at done ". '$tree/Scripts/lab/lab.sh'; . '$tree/Scripts/lab/backend.sh'; backend_explain \"\$folder\" \$1 \"\$folder/\$1.json\"" \
    "${disks[@]}" 2>"$folder/guest.log" || failure=$(sed 's/^guest: //' "$folder/guest.log" | tail -n 1)
  if [ -n "$sampler" ]; then kill "$sampler" 2>/dev/null || true; wait "$sampler" 2>/dev/null || true; fi
}

# What a failed disk does on a back-end that is not ours: one of vhost-user where that can be, else QEMU's own device.
# qemu-storage-daemon knows no IOMMU and no packed ring.
lab_peer() {
  local peer=qemu what="QEMU's own device" answer name=$1
  if [ "$expected_path-$bit-$ring" = physical-off-split ]; then peer=qsd what=qemu-storage-daemon; fi
  answer=$(
    # those of the run that failed are not this one's to end
    backend=$peer BACKEND=$peer backend_pid=()
    lab_boot "$folder-$peer"
    folder=$folder-$peer
    lab_wrong "$name"
    backend_abandon
  ) || answer=${answer:-it could not be run}
  echo "with $what: ${answer:-it works}"
}

job_lab() {
  local job_folder=$1 system=$2 started folder name reason bit failure device expected_path
  local title iommu path_on front_end suite entropy group
  local ring negotiated path requests bytes faults exposure took=0
  declare -A original=()
  system_traits "$system" || { echo "no system '$system'; there are: $lab_systems"; return 1; }
  started=$(date +%s%N) folder=$job_folder
  case $system in
    uml|libblkio|ccw|vfio|ovmf|sun4u|dpdk) "lab_$system"; return ;;
  esac
  if [ -n "$suite" ]; then
    if [ "$(id -u)" != 0 ]; then front_end="QEMU of $suite"; lab_clear; device=blk bit= lab_row skipped "a chroot needs root"; return; fi
    front_end="QEMU $("$tree/Scripts/lab/inside" "$suite" "$folder" qemu-system-x86_64 --version | sed -n 's/.*version \([0-9.]*\).*/\1/p')"
  else front_end="QEMU $(qemu-system-x86_64 --version | sed -n 's/.*version \([0-9.]*\).*/\1/p')"
  fi
  for bit in off on; do
    started=$(date +%s%N) folder=$job_folder/$bit expected_path=physical
    if [ "$bit" = on ]; then expected_path=$path_on; backend_suits "$iommu"; fi
    lab_boot "$folder"
    took=$(( ($(date +%s%N) - started) / 100000000 ))
    for name in vda vdb rng; do
      if [ $name = rng ] && [ "$entropy" != yes ]; then continue; fi
      lab_clear
      device=blk bytes=$((16 * MiB)) ring=split reason=
      case $name in vdb) ring=packed ;; rng) device=rng bytes=65536 ring=$(said rng ring) ;; esac
      backend_stop "$folder" $name || reason="the back-end did not end cleanly"
      reason=${reason:-$(lab_wrong $name)}
      negotiated=$(said $name features)
      lab_figures "$folder/$name.json"
      if [ -z "$reason" ]; then lab_row ok
      else
        bytes=0
        if [ $name != rng ]; then reason+="; $(lab_peer $name)"; fi
        lab_row failed "$reason"
      fi
      rm -f "$folder/$name.img"
    done
    if [ -n "${LAB_SAMPLES:-}" ] && [ -s "$folder/samples.jsonl" ]; then
      local picture=$title
      if [ -n "$suite" ]; then picture="${title#*, }, $front_end"; fi
      jq -c --arg system "$system" --arg title "$picture" --arg bit "$bit" '{system: $system, title: $title, bit: $bit} + .' \
        "$folder/samples.jsonl" >>"$LAB_SAMPLES"
    fi
  done
  : >"$job_folder/reported"
}

# vhost-user-blk on the channel bus: QEMU has no such device, whoever the back-end is.
lab_ccw() {
  lab_clear
  device=blk bit=on front_end="QEMU $(qemu-system-s390x --version | sed -n 's/.*version \([0-9.]*\).*/\1/p')"
  if qemu-system-s390x -device help 2>/dev/null | grep -q '"vhost-user-blk-ccw"'; then
    lab_row failed "this QEMU has vhost-user-blk-ccw: the lab does not know how to use it yet"
  else lab_row skipped "no back-end can be a disk or a source of entropy here: of vhost-user devices, QEMU's channel bus has the file system alone (vhost-user-fs-ccw), in 7.2, 10.0 and 11.1 alike; zPCI is this machine's other bus"
  fi
}

# The front-ends without a machine of QEMU's are jobs of their own; here they become rows.
lab_uml() { lab_job uml vda job_uml "$folder"; }
lab_libblkio() {
  local client place=$folder
  for client in qemu-io bench nbdkit; do
    started=$(date +%s%N) folder=$place/$client
    case $client in bench) front_end="libblkio, qemu-img bench" ;; *) front_end="libblkio, $client" ;; esac
    lab_job "libblkio $client" disk job_libblkio "$folder" "$client"
  done
  : >"$place/reported"
}

# DPDK drives vhost-user devices too, but none that the lab has: the virtio drivers that Debian packages are for net and crypto.
lab_dpdk() {
  lab_clear
  device=blk bit=
  lab_row skipped "its virtio drivers are for net and crypto: none for a disk, none for entropy"
}

# lab_job ROW DISK COMMAND...    COMMAND reports ROW of a disk whose back-end works in the folder; ring and bit are what they are
lab_job() {
  local name=$1 watcher last disk=$2
  shift 2
  lab_clear
  device=blk bit=off
  mkdir -p "$folder"
  lab_watch "$folder" "$disk" 0.05 &
  watcher=$!
  "$@"
  kill "$watcher" 2>/dev/null || true
  wait "$watcher" 2>/dev/null || true
  took=$(( ($(date +%s%N) - started) / 100000000 ))
  last=$(grep -E "^(ok|failed|skipped) $name" "$work/results" | tail -n 1)
  lab_figures "$folder/last.json"
  if [ -s "$folder/last.json" ]; then
    negotiated=$(jq -r '.negotiated_features | map(tostring) | join(",")' "$folder/last.json")
    bit=$(jq -r 'if .access_platform_accepted then "on" else "off" end' "$folder/last.json")
    ring=$(jq -r .ring "$folder/last.json")
  fi
  case $last in
    ok*) bytes=$((16 * MiB)); lab_row ok ;;
    *) lab_row "${last%% *}" "${last#*: }" ;;
  esac
}
