# The jobs of Scripts/guests. Each gets its folder and what comes after the dash of its name, and reports rows.

# row ok|failed|skipped NAME [REASON]    one line on the screen, one in the results
row() {
  local seconds=$(( ($(date +%s%N) - started) / 100000000 ))
  printf '%s %s%s\n' "$1" "$2" "${3:+: $3}" >>"$work/results"
  : >"$folder/reported"
  if [ "$1" = failed ]; then
    printf '%-7s guests %s %d.%d s: %s\n' "$1" "$2" $((seconds / 10)) $((seconds % 10)) "$3"
    # the logs once, with the first row that failed
    if mkdir "$folder/shown" 2>/dev/null; then show_logs "$folder" 14; fi
  else
    printf '%-7s guests %s %d.%d s%s\n' "$1" "$2" $((seconds / 10)) $((seconds % 10)) "${3:+: $3}"
  fi
}

# The row of a job that did not get to write its own.
job_died() {
  local folder=$1 started
  started=$(date +%s%N)
  row failed "$2" "$3"
}

sum() { md5sum | cut -d' ' -f1; }
MiB=1048576
said() { sed -n "s/.*disk=$1 .*$2=\([^ ]*\).*/\1/p" "$folder/talk.log" | tail -n 1; }

# Does this back-end take part in this mode? qemu-storage-daemon knows no IOMMU; QEMU's own device is no vhost-user device.
able() {
  case $backend-$1 in
    qsd-off|sluice-*) ;;
    qemu-*) [ "$1" != kill ] && [ "$1" != uml ] && [ "$1" != libblkio ] ;;
    qsd-uml|qsd-libblkio) ;;
    *) return 1 ;;
  esac
}

# How many blocks a discarded or punched image may still hold, and that what the guest kept is untouched.
check_discard() {
  local image=$1 before=$2 quarter=$((16 * MiB / 4)) allocated
  allocated=$(($(stat -c '%b * %B' "$image")))
  if [ "$(head -c $quarter "$image" | sum)" != "$before" ]; then echo "the quarter nobody touched changed"; return; fi
  if [ "$(tail -c $((2 * quarter)) "$image" | sum)" != "$(head -c $((2 * quarter)) /dev/zero | sum)" ]; then echo "what was zeroed is not zero"; return; fi
  # a quarter holds data and a quarter may hold written zeroes; two quarters must be gone
  if [ "$allocated" -gt $((2 * quarter + 65536)) ]; then echo "the image still holds $allocated bytes: nothing was punched out"; fi
}

# {split, packed} x {1, 4 queues} with data checked both ways, fio with verify, and discard: one boot
job_matrix() {
  local folder=$1 mode=$2 started disk number name reason failure=
  started=$(date +%s%N)
  # letter ring queues workload
  local plan=("a split 1 raw" "b split 4 raw" "c packed 1 raw" "d packed 4 raw" "e split 4 fio" "f packed 4 fio" "g split 1 discard" "h packed 4 discard")
  local disks=() names=()
  if ! able "$mode"; then
    for disk in "${plan[@]}"; do set -- $disk; row skipped "$mode $2 ${3}q $4" "$backend cannot"; done
    return
  fi
  backend_suits "$mode"
  declare -A original=()
  for disk in "${plan[@]}"; do
    set -- $disk
    name=vd$1
    head -c $((8 * MiB)) /dev/urandom >"$folder/$name.img"
    if [ "$4" = discard ]; then head -c $((8 * MiB)) /dev/urandom >>"$folder/$name.img"; original[$name]=$(head -c $((4 * MiB)) "$folder/$name.img" | sum)
    else truncate -s 16M "$folder/$name.img"; original[$name]=$(head -c $((8 * MiB)) "$folder/$name.img" | sum); fi
    backend_start "$folder" "$name" "$folder/$name.img" "$3" || failure="the back-end did not start"
    disks+=("$(backend_disk "$folder" "$name"),workload=$4,ring=$2,queues=$3")
  done
  export sluice backend folder
  if [ -z "$failure" ]; then
    "$tree/Scripts/lab/guest" --iommu "$mode" --smp 4 --fio --timeout "$limit" --folder "$folder" \
      --at working ". '$tree/Scripts/lab/lab.sh'; . '$tree/Scripts/lab/backend.sh'; backend_explain \"\$folder\" \$1 \"\$folder/\$1.json\"" \
      "${disks[@]}" 2>"$folder/guest.log" || failure=$(sed 's/^guest: //' "$folder/guest.log" | tail -n 1)
  fi
  for disk in "${plan[@]}"; do
    set -- $disk
    name=vd$1 reason=
    backend_stop "$folder" "$name" || reason="the back-end did not end cleanly"
    # a verdict of one disk is its own; without any, the boot failed for all
    if [ -n "$failure" ] && [ "$(said "$name" verdict)" != ok ]; then reason=${failure:-no verdict}; fi
    if [ -z "$reason" ]; then reason=$(check_facts "$name" "$mode" "$2" "$3"); fi
    if [ -z "$reason" ]; then
      case $4 in
        raw)
          if [ "$(said "$name" "step=read md5")" != "${original[$name]}" ]; then reason="the guest read other bytes than the image held"
          elif [ "$(head -c $((8 * MiB)) "$folder/$name.img" | sum)" != "${original[$name]}" ]; then reason="the half that was only read changed"
          elif [ "$(tail -c $((8 * MiB)) "$folder/$name.img" | sum)" != "$(said "$name" "step=write md5")" ]; then reason="the image does not hold what the guest wrote"
          fi ;;
        discard) reason=$(check_discard "$folder/$name.img" "${original[$name]}") ;;
      esac
    fi
    if [ -z "$reason" ]; then reason=$(check_explained "$folder/$name.json" "$mode" "$4"); fi
    if [ -z "$reason" ]; then row ok "$mode $2 ${3}q $4"; else row failed "$mode $2 ${3}q $4" "$reason"; fi
    rm -f "$folder/$name.img"
  done
}

# What the guest's kernel says must be what was asked for: a mode that quietly became another one proves nothing.
check_facts() {
  local name=$1 mode=$2 ring=$3 queues=$4 group platform=yes
  case $mode in
    off) group=none platform=no ;;
    strict) group=DMA ;;
    lazy) group=DMA-FQ ;;
    pt) group=identity ;;
    *) group= ;;
  esac
  if [ "$(said "$name" ring)" != "$ring" ]; then echo "asked for a $ring ring, the guest uses $(said "$name" ring)"
  elif [ "$(said "$name" queues)" != "$queues" ]; then echo "asked for $queues queues, the guest uses $(said "$name" queues)"
  elif [ "$(said "$name" access_platform)" != "$platform" ]; then echo "VIRTIO_F_ACCESS_PLATFORM is '$(said "$name" access_platform)', expected '$platform'"
  elif [ -n "$group" ] && [ "$(said "$name" group)" != "$group" ]; then echo "the IOMMU group is $(said "$name" group), expected $group"
  elif [ -z "$group" ] && [ "$(said "$name" group)" = none ]; then echo "the device has no IOMMU group"
  fi
}

# What the back-end itself says, sampled while the guest worked.
check_explained() {
  if [ "$backend" != sluice ] || [ "$3" != raw ]; then return; fi
  if [ ! -s "$1" ]; then echo "sluice explain gave no answer"; else wrong_figures "$1" "$2"; fi
}

# kill -9 under write load, ten times; afterwards every acknowledged block must be in the image
#   job_kill FOLDER MODE[-SUITE]      SUITE: with the QEMU of another Debian
job_kill() {
  local folder=$1 mode=${2%%-*} suite= started ring queues disk guest verdict reason= lines n=0 pid options=()
  case $2 in *-*) suite=${2#*-} options=(--qemu "$tree/Scripts/lab/inside $suite $folder qemu-system-x86_64") ;; esac
  started=$(date +%s%N)
  case $mode in off) ring=packed queues=1 ;; *) ring=split queues=2 ;; esac
  local name="$mode $ring ${queues}q kill${suite:+ $suite}"
  if ! able kill; then row skipped "$name" "$backend cannot"; return; fi
  truncate -s 16G "$folder/vda.img"
  backend_start "$folder" vda "$folder/vda.img" "$queues" || { row failed "$name" "the back-end did not start"; return; }
  set +m
  "$tree/Scripts/lab/guest" --iommu "$mode" --smp 2 --timeout "$limit" --folder "$folder" "${options[@]}" \
    "$(backend_disk "$folder" vda),reconnect,workload=seq,ring=$ring,queues=$queues" 2>"$folder/guest.log" &
  guest=$!
  : >"$folder/talk.log"
  acks() { grep -c 'SLUICE-GUEST ack' "$folder/talk.log" || true; }
  # at most one line can still come from before the kill; ten more are ten times fifty milliseconds of acknowledged writes
  progress() {
    local until=$(($(acks) + 10)) tries=0
    while [ "$(acks)" -lt $until ]; do
      kill -0 "$guest" 2>/dev/null || { reason="the guest is gone"; return 1; }
      [ $((tries += 1)) -lt 600 ] || { reason="after kill $n the guest wrote nothing for 60 s"; return 1; }
      sleep 0.1
    done
  }
  while progress && [ $n -lt 10 ]; do
    pid=${backend_pid[vda]}
    kill -KILL "$pid"
    echo "SLUICE-HOST kill $n at $(( ($(date +%s%N) - started) / 1000000 )) ms" >>"$folder/kills.log"
    wait "$pid" 2>/dev/null || true
    n=$((n + 1))
    backend_start "$folder" vda "$folder/vda.img" "$queues" || { reason="the back-end did not start again after kill $n"; break; }
  done
  if [ -p "$folder/talk.in" ]; then echo stop >"$folder/talk.in"; fi
  if ! wait "$guest" && [ -z "$reason" ]; then reason=$(sed 's/^guest: //' "$folder/guest.log" | tail -n 1); fi
  backend_stop "$folder" vda || reason=${reason:-the back-end did not end cleanly}
  local numbered
  numbered=$(dirname "$("$tree/Scripts/lab/initramfs" 6.1)")/numbered
  verdict=$("$numbered" check "$folder/vda.img" 32 <"$folder/talk.log" 2>>"$folder/check.log") || reason=${reason:-$verdict}
  [ $n = 10 ] || reason=${reason:-only $n kills}
  if [ -z "$reason" ]; then row ok "$name" "$n kills, $verdict"; else row failed "$name" "$reason ($n kills, $verdict)"; fi
  rm -f "$folder/vda.img"
}

# The guest verifies, writes, reboots and verifies again, on two disks at once.
job_reboot() {
  local folder=$1 mode=$2 started reason= name read
  started=$(date +%s%N)
  if ! able "$mode"; then row skipped "$mode reboot" "$backend cannot"; return; fi
  declare -A original=()
  for name in vda vdb; do
    head -c $((8 * MiB)) /dev/urandom >"$folder/$name.img"
    backend_start "$folder" "$name" "$folder/$name.img" 2 || reason="the back-end did not start"
    original[$name]=$(head -c $((6 * MiB)) "$folder/$name.img" | sum)
  done
  if [ -z "$reason" ]; then
    "$tree/Scripts/lab/guest" --iommu "$mode" --smp 2 --reboot --timeout "$limit" --folder "$folder" \
      "$(backend_disk "$folder" vda),workload=reboot,ring=split,queues=2" \
      "$(backend_disk "$folder" vdb),workload=reboot,ring=packed,queues=2" 2>"$folder/guest.log" \
      || reason=$(sed 's/^guest: //' "$folder/guest.log" | tail -n 1)
  fi
  for name in vda vdb; do
    backend_stop "$folder" "$name" || reason=${reason:-the back-end did not end cleanly}
    for boot in 1 2; do
      read=$(sed -n "s/.*disk=$name step=read boot=$boot md5=//p" "$folder/talk.log")
      if [ "$read" != "${original[$name]}" ]; then reason=${reason:-boot $boot read other bytes on $name}; fi
    done
  done
  if [ -z "$reason" ]; then row ok "$mode reboot"; else row failed "$mode reboot" "$reason"; fi
  rm -f "$folder"/*.img
}

# User-mode Linux: another front-end, in one process. It spins for ever when its back-end dies, so its clock is hard.
job_uml() {
  local folder=$1 started reason= original read wrote code=0
  started=$(date +%s%N)
  if ! able uml; then row skipped uml "$backend cannot"; return; fi
  head -c $((8 * MiB)) /dev/urandom >"$folder/vda.img"
  original=$(sum <"$folder/vda.img")
  truncate -s 16M "$folder/vda.img"
  # its kernel takes every transport feature: it has no DMA layer to go with the one, and starts packed rings with the wrong
  # wrap counters
  SLUICE_OPTIONS="${SLUICE_OPTIONS:-} --access-platform off --no-packed"
  backend_start "$folder" vda "$folder/vda.img" 1 || { row failed uml "the back-end did not start"; return; }
  # in a group of its own: killing the first of its processes alone would leave the others spinning
  timeout -s KILL 90 linux.uml mem=256M "virtio_uml.device=$folder/vda.sock:2" \
    "initrd=$("$tree/Scripts/lab/initramfs" uml)" con=null con0=null,fd:2 ssl=null ssl0=null,fd:1 loglevel=5 \
    sluice.talk=/dev/ttyS0 sluice.unattended sluice.vda=raw </dev/null >"$folder/talk.raw" 2>"$folder/uml.log" || code=$?
  tr -d '\r' <"$folder/talk.raw" >"$folder/talk.log"
  read=$(said vda "step=read md5") wrote=$(said vda "step=write md5")
  if [ "$code" = 137 ]; then reason="no end within 90 s"
  elif [ "$(said vda verdict)" != ok ]; then reason="no good verdict (status $code)"
  elif [ "$read" != "$original" ]; then reason="read other bytes than the image held"
  elif [ "$(tail -c $((8 * MiB)) "$folder/vda.img" | sum)" != "$wrote" ]; then reason="the image does not hold what was written"
  elif [ "$(head -c $((8 * MiB)) "$folder/vda.img" | sum)" != "$original" ]; then reason="the half that was only read changed"
  fi
  backend_stop "$folder" vda || reason=${reason:-the back-end did not end cleanly}
  if [ -z "$reason" ]; then row ok uml; else row failed uml "$reason"; fi
  rm -f "$folder/vda.img"
}

# libblkio, through what uses it: front-ends without a machine. `qemu-io` (with qemu-img's convert), `bench` (qemu-img's) and
# `nbdkit` (its blkio plugin), each with a back-end of its own.
#   job_libblkio FOLDER [CLIENT]
job_libblkio() {
  local folder=$1 clients="qemu-io bench nbdkit" client started chroot
  started=$(date +%s%N)
  case ${2:-} in qemu-io|bench|nbdkit) clients=$2 ;; esac
  if ! able libblkio; then row skipped libblkio "$backend cannot"; return; fi
  if [ "$(id -u)" != 0 ]; then row skipped libblkio "a chroot needs root"; return; fi
  chroot=$("$tree/Scripts/lab/chroot") || { row failed libblkio "no trixie"; return; }
  for client in $clients; do
    started=$(date +%s%N)
    libblkio_client "$client"
  done
}

# libblkio_client CLIENT    one of them, with the caller's `folder` and `chroot`
libblkio_client() {
  local reason= image=$folder/disk.img place options
  place=$(mktemp -d "$chroot/tmp/libblkio.XXXXXX")
  place=${place#"$chroot"}
  options="driver=virtio-blk-vhost-user,path=$place/disk.sock,cache.direct=on"
  # in a mount namespace of its own, so nothing stays mounted whatever happens
  inside() {
    timeout --foreground -s KILL 120 unshare -m sh -c '
      mount --bind /proc "$1/proc" && mount --bind /dev "$1/dev" && mount -t tmpfs shm "$1/dev/shm" && mount --bind "$2" "$1$3" || exit 125
      root=$1; shift 3; exec chroot "$root" "$@"' sh "$chroot" "$folder" "$place" "$@" >>"$folder/tool.log" 2>&1
  }
  head -c $((16 * MiB)) /dev/urandom >"$image"
  cp "$image" "$folder/original.img"
  rm -f "$folder/copy.img"
  if ! backend_start "$folder" disk "$image" 2; then reason="the back-end did not start"
  else
    case $1 in
      qemu-io) reason=$(libblkio_edits) ;;
      bench) reason=$(libblkio_bench) ;;
      nbdkit) reason=$(libblkio_nbd) ;;
    esac
  fi
  backend_stop "$folder" disk || reason=${reason:-the back-end did not end cleanly}
  if [ -z "$reason" ]; then row ok "libblkio $1"; else row failed "libblkio $1" "$reason"; fi
  rm -f "$folder"/*.img
  rmdir "$chroot$place" 2>/dev/null || true
}

libblkio_edits() {
  local copy=$folder/copy.img
  if ! inside qemu-img convert --image-opts "$options" -O raw "$place/copy.img"; then echo "qemu-img cannot read the disk"; return; fi
  if ! cmp "$copy" "$folder/original.img" >>"$folder/tool.log"; then echo "libblkio read other bytes than the image held"; return; fi
  # it stays a second, for who wants to know what it negotiated
  if ! inside qemu-io -c "write -P 0xa5 1M 1M" -c "write -P 0x5a 4608 1536" -c "write -z 2M 1M" -c "discard 3M 1M" -c flush \
    -c "read -P 0xa5 1M 1M" -c "read -P 0x5a 4608 1536" -c "read -P 0 2M 1M" -c "sleep 1000" --image-opts "$options"; then echo "qemu-io failed"; return; fi
  # the same edits on a copy, from outside
  head -c $MiB /dev/zero | tr '\0' '\245' | dd of="$copy" bs=1M seek=1 conv=notrunc status=none
  head -c 1536 /dev/zero | tr '\0' '\132' | dd of="$copy" bs=512 seek=9 conv=notrunc status=none
  head -c $((2 * MiB)) /dev/zero | dd of="$copy" bs=1M seek=2 conv=notrunc status=none
  cmp "$copy" "$image" >>"$folder/tool.log" || echo "the image does not hold what was written"
}

# What it reads nobody looks at; what it writes is a pattern, and it goes over the whole disk several times.
libblkio_bench() {
  if ! inside qemu-img bench -c 20000 -d 32 -s 4096 --image-opts "$options"; then echo "qemu-img bench failed"
  elif ! cmp "$image" "$folder/original.img" >>"$folder/tool.log"; then echo "reading changed the image"
  elif ! inside qemu-img bench -w -c 20000 -d 32 -s 4096 --pattern=165 --flush-interval=1000 --image-opts "$options"; then echo "qemu-img bench -w failed"
  elif [ "$(sum <"$image")" != "$(head -c $((16 * MiB)) /dev/zero | tr '\0' '\245' | sum)" ]; then echo "the image does not hold what was written"
  fi
}

libblkio_nbd() {
  local serve=(nbdkit -U - blkio virtio-blk-vhost-user "path=$place/disk.sock" --run)
  head -c $((16 * MiB)) /dev/urandom >"$folder/new.img"
  # several times, so that there is time to ask what it negotiated
  if ! inside "${serve[@]}" "for n in 1 2 3 4 5 6 7 8; do nbdcopy \"\$uri\" $place/copy.img || exit; done"; then echo "nbdkit cannot read the disk"
  elif ! cmp "$folder/copy.img" "$folder/original.img" >>"$folder/tool.log"; then echo "nbdkit read other bytes than the image held"
  elif ! inside "${serve[@]}" "nbdcopy --flush $place/new.img \"\$uri\""; then echo "nbdkit cannot write the disk"
  elif ! cmp "$folder/new.img" "$image" >>"$folder/tool.log"; then echo "the image does not hold what was written"
  fi
}
