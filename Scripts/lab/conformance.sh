# `sluice check` on Sluice's own back-ends and on other people's: `Scripts/guests check-PEER`. Sourced after jobs.sh.
# Each result is a line of $CHECK_ROWS, a file of JSON lines. What a back-end breaks is tried again, twice: the table calls broken
# what was seen in at least two of three tries, and says of what else was seen how often.

check_peers="sluice-blk sluice-rng dpdk dpdk-new qsd7 qsd10 qsd11 virtiofsd7 virtiofsd vsock"

# peer_traits NAME FOLDER    sets what a run has to know of it: title, type, program (a command that prints its version), command
peer_traits() {
  local socket=$2/peer.sock inside="$tree/Scripts/lab/inside"
  # no huge pages, no devices of this host, names of its own; with a period for figures it does not wait for a key
  local pmd=(dpdk-testpmd -l 0-1 --no-huge -m 512 --no-pci --no-telemetry "--file-prefix=check$$" "--vdev=net_vhost0,iface=$socket,iommu-support=1"
    -- --stats-period=3600 --forward-mode=rxonly --total-num-mbufs=4096)
  local qsd=(qemu-storage-daemon --blockdev "driver=file,filename=$2/disk.img,node-name=file"
    --export "type=vhost-user-blk,id=export,node-name=file,addr.type=unix,addr.path=$socket,writable=off")
  case $1 in
    sluice-blk) title="Sluice blk" type=blk program=("$sluice" --version) command=("$sluice" serve blk --blk-file "$2/disk.img" --socket-path "$socket") ;;
    sluice-rng) title="Sluice rng" type=rng program=("$sluice" --version) command=("$sluice" serve rng --socket-path "$socket") ;;
    dpdk) title="DPDK" type=net program=(dpkg-query -W -f '${Version}' dpdk) command=("${pmd[@]}") ;;
    dpdk-new) title="DPDK" type=net program=("$inside" peers "$2" dpkg-query -W -f '${Version}' dpdk-dev) command=("$inside" peers "$2" "${pmd[@]}") ;;
    qsd7) title="QSD" type=blk program=(qemu-storage-daemon --version) command=("${qsd[@]}") ;;
    qsd10) title="QSD" type=blk program=("$inside" trixie "$2" qemu-storage-daemon --version) command=("$inside" trixie "$2" "${qsd[@]}") ;;
    qsd11) title="QSD" type=blk program=("$inside" sid "$2" qemu-storage-daemon --version) command=("$inside" sid "$2" "${qsd[@]}") ;;
    virtiofsd7) title="virtiofsd" type=fs program=(/usr/lib/qemu/virtiofsd --version)
      command=(/usr/lib/qemu/virtiofsd "--socket-path=$socket" -o "source=$2/shared" -o sandbox=chroot) ;;
    virtiofsd) title="virtiofsd" type=fs program=("$inside" peers "$2" /usr/libexec/virtiofsd --version)
      command=("$inside" peers "$2" /usr/libexec/virtiofsd "--socket-path=$socket" "--shared-dir=$2/shared" --sandbox none) ;;
    vsock) title="vhost-device-vsock" type=vsock program=("$inside" peers "$2" vhost-device-vsock --version)
      command=("$inside" peers "$2" vhost-device-vsock --socket "$socket" --guest-cid 3 --uds-path "$2/vm.vsock") ;;
    *) return 1 ;;
  esac
}

# What of it is in the table instead of results.
check_absent() {
  row skipped "check $peer" "$1"
  jq -nc --arg peer "$peer" --arg title "$title" --arg version "" --arg absent "$1" '$ARGS.named' >>"${CHECK_ROWS:-$work/check.jsonl}"
}

job_check() {
  local folder=$1 peer=$2 started title type program command version try status=0 only=() faults name patience=5
  started=$(date +%s%N)
  if ! peer_traits "$peer" "$folder"; then row failed "check $peer" "no such peer; there are: $check_peers"; return; fi
  if [ "${command[0]}" = "$tree/Scripts/lab/inside" ] && [ "$(id -u)" != 0 ]; then check_absent "its chroot needs root"; return; fi
  # Whatever becomes of the one who started it: a testpmd that is left over polls a processor for ever. The bound holds if `sluice
  # check` dies, and the other word if it kills the bound because the peer did not go when it was asked to.
  command=(timeout --foreground -s KILL "$((limit + 10))" setpriv --pdeathsig KILL "${command[@]}")
  mkdir "$folder/shared"
  # of ours nothing comes to nothing, however busy the machine is
  case $peer in sluice-*) patience=20 ;; esac
  head -c $MiB /dev/urandom >"$folder/disk.img"
  if ! version=$(timeout --foreground -s KILL 600 "${program[@]}" 2>>"$folder/peer.log" | grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n 1) || [ -z "$version" ]; then
    check_absent "it is not there: $(tail -n 1 "$folder/peer.log")"
    return
  fi
  for try in 1 2 3; do
    timeout --foreground -k 5 "$limit" "$sluice" check "$folder/peer.sock" --type "$type" --json --timeout "$patience" "${only[@]}" -- "${command[@]}" \
      >"$folder/try.$try" 2>>"$folder/peer.log" && status=0 || status=$?
    if [ "$status" -gt 1 ]; then row failed "check $peer" "sluice check ended with status $status: $(tail -n 1 "$folder/peer.log")"; return; fi
    jq -c --arg peer "$peer" --arg title "$title" --arg version "$version" --arg type "$type" --argjson try "$try" \
      '. + $ARGS.named' "$folder/try.$try" >>"${CHECK_ROWS:-$work/check.jsonl}"
    faults=$(jq -r 'select(.verdict == "broken" or .verdict == "wedged" or .verdict == "crashed") | .check' "$folder/try.$try")
    # the second try is of what was found in the first, and the third is of the same
    if [ "$try" = 1 ]; then
      if [ -z "$faults" ]; then break; fi
      only=()
      for name in $faults; do only+=(--only "$name"); done
    fi
  done
  faults=$(jq -r 'select(.verdict == "broken" or .verdict == "wedged" or .verdict == "crashed") | .check' "$folder"/try.* | sort | uniq -d | wc -l)
  name="$(jq -r 'select(.summary) | "\(.kept) of \(.kept + .broken + .wedged + .crashed) kept"' "$folder/try.1")"
  case $peer in
    sluice-*) if [ "$(jq -s 'map(select(.verdict == "broken" or .verdict == "wedged" or .verdict == "crashed" or .verdict == "not checked")) | length' "$folder"/try.*)" = 0 ]
      then row ok "check $peer" "$name"; else row failed "check $peer" "$(jq -r 'select(.verdict == "broken" or .verdict == "wedged" or .verdict == "crashed" or .verdict == "not checked") | "\(.check): \(.verdict): \(.evidence)"' "$folder"/try.* | head -n 1)"; fi ;;
    # what somebody else breaks is a finding and no failure of this run
    *) row ok "check $peer" "$version: $name, $faults faults seen again" ;;
  esac
}
