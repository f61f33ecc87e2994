# The lab's system whose firmware is all there is: OpenBIOS on SPARC64 sun4u, a big-endian machine for which Debian has no kernel.
# `Scripts/guests lab-sun4u`. Sourced after systems.sh. OpenBIOS has a virtio-blk driver that reads, and Forth to say what it read.

openbios_reads=32                     # of 32 KiB: what its heap has room for

# openbios_boot FOLDER SUITE OPTION    boots it once, from the host's own QEMU (SUITE is empty) or another suite's, with one more
# option for the device, and reads the disk. Sets `failure`, and `read_first` and `read_all`: CRCs as OpenBIOS computed them.
openbios_boot() {
  local folder=$1 suite=$2 disk=bus=pciB,disable-legacy=on,$3 program=(qemu-system-sparc64) memory=(-m 256M) device line lines=0 pid
  failure= read_first= read_all=
  mkdir -p "$folder"
  head -c $MiB /dev/urandom >"$folder/vda.img"
  backend_start "$folder" vda "$folder/vda.img" 1 || { failure="the back-end did not start"; return; }
  if [ -n "$suite" ]; then
    program=$("$tree/Scripts/lab/package" "$suite" amd64 qemu-system-sparc)/usr/bin/qemu-system-sparc64
    program=("$tree/Scripts/lab/inside" "$suite" "$folder" "$program")
    # this machine allocates its memory itself; only newer ones can be told to let others have it
    memory+=(-machine aux-ram-share=on)
  fi
  case $(backend_disk "$folder" vda) in
    socket=*) device=(-chardev "socket,id=disk,path=$folder/vda.sock" -device "vhost-user-blk-pci,chardev=disk,$disk") ;;
    *) device=(-drive "file=$folder/vda.img,format=raw,if=none,id=disk" -device "virtio-blk-pci,drive=disk,$disk") ;;
  esac
  rm -f "$folder/keys"
  mkfifo "$folder/keys"
  exec {keys}<>"$folder/keys"
  timeout --foreground -s KILL "$limit" "${program[@]}" -M sun4u -nodefaults -no-user-config -nographic "${memory[@]}" -serial stdio \
    -prom-env 'auto-boot?=false' "${device[@]}" <"$folder/keys" >"$folder/console.log" 2>"$folder/qemu.log" &
  pid=$!
  prompted() { [ "$(tr -d '\r' <"$folder/console.log" | grep -ao '0 > ' | wc -l)" -gt "$lines" ] || ! kill -0 "$pid" 2>/dev/null; }
  # The CRC of gzip, a table for it, and so many reads of the disk one after the other; a line holds less than 80 characters.
  while IFS= read -r line; do
    until_holds 90 prompted && kill -0 "$pid" 2>/dev/null || { failure="OpenBIOS gave no prompt"; break; }
    lines=$((lines + 1))
    printf '%s\r' "$line" >&"$keys"
  done <<'FORTH'
hex create table 800 allot
: entry 8 0 do dup 1 and if 1 >> edb88320 xor else 1 >> then loop ;
: entries 100 0 do i entry i cells table + ! loop ; entries
: crc bounds do i c@ over xor ff and cells table + @ swap 8 >> xor loop ;
8000 alloc-mem value buffer
" /pci@1fe,0/pci@1/scsi@0/disk" open-dev value disk
: seek-to 0 " seek" disk $call-method drop ;
: take buffer 8000 " read" disk $call-method drop ;
: part 8000 * seek-to take buffer 8000 crc ;
: parts ffffffff swap 0 do i part loop ffffffff xor ;
1 parts ." FIRST" ." =" u. cr
FORTH
  if [ -z "$failure" ] && until_holds 60 prompted; then
    read_first=$(openbios_said FIRST)
    if [ -n "$read_first" ] && [ "$read_first" = "$(head -c 32768 "$folder/vda.img" | crc)" ]; then
      lines=$((lines + 1))
      printf '%x parts ." ALL" ." =" u. cr\r' "$openbios_reads" >&"$keys"
      if until_holds 120 prompted; then read_all=$(openbios_said ALL); fi
    fi
  fi
  if [ "$backend" = sluice ]; then backend_explain "$folder" vda "$folder/vda.json" || true; fi
  kill -TERM "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  exec {keys}>&-
  rm -f "$folder/keys"
}
openbios_said() { tr -d '\r' <"$folder/console.log" | sed -n "s/^.*$1=\([0-9a-f]*\) .*/\1/p" | tail -n 1; }
crc() { gzip -c | tail -c 8 | od -An -N4 -tx4 | sed 's/^ *0*//'; }
openbios_read() { [ -n "$read_all" ] && [ "$read_all" = "$(crc <"$folder/vda.img")" ]; }

# openbios_peer BACKEND SUITE OPTION    how far another back-end gets
openbios_peer() {
  (
    backend=$1 BACKEND=$1 backend_pid=() folder=$folder-$1
    openbios_boot "$folder" "$2" "$3" 2>/dev/null
    if openbios_read; then echo "reads the disk"
    elif [ -n "$failure" ]; then echo "does not start ($(grep -v 'terminating on signal' "$folder/qemu.log" | tail -n 1 | sed 's/.*: //'))"
    else echo "gets no further"
    fi
    backend_abandon
  ) || echo "could not be run"
}

# openbios_row SUITE BIT    one boot, one row
openbios_row() {
  local suite=$1 reason= never="no request ever arrived"
  bit=$2 started=$(date +%s%N) folder=$job_folder/${1:-host}-$2 device=blk
  if [ -n "$suite" ]; then
    front_end="QEMU $("$tree/Scripts/lab/inside" "$suite" "$job_folder" qemu-system-x86_64 --version | sed -n 's/.*version \([0-9.]*\).*/\1/p')"
  else front_end="QEMU $(qemu-system-sparc64 --version | sed -n 's/.*version \([0-9.]*\).*/\1/p')"
  fi
  openbios_boot "$folder" "$suite" "iommu_platform=$bit"
  took=$(( ($(date +%s%N) - started) / 100000000 ))
  backend_stop "$folder" vda || reason="the back-end did not end cleanly"
  lab_clear
  lab_figures "$folder/vda.json"
  negotiated=$(jq -r '.negotiated_features | map(tostring) | join(",")' "$folder/vda.json") || true
  ring=$(jq -r '.ring // ""' "$folder/vda.json") || true
  if [ -n "$reason$failure" ]; then lab_row failed "${reason:-$failure}"
  elif openbios_read; then
    bytes=$MiB
    if [ "$backend" = sluice ]; then
      reason=$(wrong_figures "$folder/vda.json" off)
      if [ "$bit$negotiated" != off32 ]; then reason=${reason:-"OpenBIOS negotiated the features $negotiated with bit 33 $bit"}; fi
      if [ "$requests" != $((openbios_reads + 1)) ]; then reason=${reason:-"$requests requests"}; fi
    fi
    if [ -z "$reason" ]; then lab_row ok; else lab_row failed "$reason"; fi
  elif [ "$(jq .requests "$folder/vda.json")" != 0 ]; then
    lab_row failed "OpenBIOS read something else than the disk holds; QEMU's own device $(openbios_peer qemu "$suite" "iommu_platform=$bit")"
  elif [ "$bit" = on ] && [ -z "$negotiated" ]; then
    requests= faults=
    reason="$never: OpenBIOS negotiates VIRTIO_F_VERSION_1 alone, so QEMU denies it FEATURES_OK, and OpenBIOS goes on without looking"
    reason+=". QEMU starts no vhost-user device then: with qemu-storage-daemon it $(openbios_peer qsd "$suite" "iommu_platform=$bit")"
    reason+=". QEMU's own device, which serves without DRIVER_OK, $(openbios_peer qemu "$suite" "iommu_platform=$bit")"
    lab_row skipped "$reason"
  elif [ "$(jq .memory_bytes "$folder/vda.json")" = 0 ]; then
    requests= faults=
    reason="$never: this QEMU cannot share the machine's memory with another process (10.0 can, aux-ram-share=on), and its"
    reason+=" SET_MEM_TABLE names no region; OpenBIOS opens the disk, negotiates and waits. With qemu-storage-daemon it"
    lab_row skipped "$reason $(openbios_peer qsd "$suite" "iommu_platform=$bit")"
  else lab_row failed "$never; QEMU's own device $(openbios_peer qemu "$suite" "iommu_platform=$bit")"
  fi
  rm -f "$folder"*/vda.img
}

lab_sun4u() {
  if [ "$(id -u)" != 0 ]; then front_end="QEMU of trixie" device=blk bit=; lab_clear; lab_row skipped "a chroot needs root"; return; fi
  openbios_row trixie off
  openbios_row trixie on
  openbios_row "" off
  : >"$job_folder/reported"
}
