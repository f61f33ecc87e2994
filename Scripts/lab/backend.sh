# Starting, watching and ending a back-end process. Sourced after lab.sh.
#
# BACKEND=sluice (the default), or for work on the lab itself: qsd (qemu-storage-daemon, which knows no IOMMU)
# and qemu (QEMU's own virtio-blk, no process at all).

backend=${BACKEND:-sluice}
sluice=${SLUICE:-$tree/.build/release/sluice}
declare -A backend_pid=() backend_image=() backend_queues=()

# What the back-end has to know about a guest's IOMMU: QEMU's AMD-Vi does not tell a vhost device what the guest unmaps, so
# nothing may be remembered from one request to the next.
backend_suits() { if [ "$1" = amd ]; then SLUICE_OPTIONS="${SLUICE_OPTIONS:-} --translations once"; fi; }

# backend_start FOLDER NAME IMAGE QUEUES    returns when the socket listens
backend_start() {
  local folder=$1 name=$2 image=$3 queues=$4 socket=$1/$2.sock
  backend_image[$name]=$image backend_queues[$name]=$queues
  case $backend in
    sluice)
      "$sluice" serve blk --socket-path "$socket" --blk-file "$image" --num-queues "$queues" --serial "$name" ${SLUICE_OPTIONS:-} \
        </dev/null >>"$folder/$name.log" 2>&1 &
      ;;
    qsd)
      qemu-storage-daemon --blockdev "driver=file,filename=$image,node-name=file,discard=unmap${QSD_OPTIONS:+,$QSD_OPTIONS}" \
        --export "type=vhost-user-blk,id=export,node-name=file,addr.type=unix,addr.path=$socket,writable=on,num-queues=$queues" \
        </dev/null >>"$folder/$name.log" 2>&1 &
      ;;
    qemu) return 0 ;;
    *) die "BACKEND is sluice, qsd or qemu" ;;
  esac
  backend_pid[$name]=$!
  backend_listens "$folder" "$name"
}

# backend_start_entropy FOLDER NAME    Sluice's virtio-rng; returns when the socket listens
backend_start_entropy() {
  "$sluice" serve rng --socket-path "$1/$2.sock" ${SLUICE_OPTIONS:-} </dev/null >>"$1/$2.log" 2>&1 &
  backend_pid[$2]=$!
  backend_listens "$1" "$2"
}

backend_listens() {
  local folder=$1 name=$2 socket=$1/$2.sock tries=0
  # a killed one leaves the path behind, so ask the kernel who listens
  while ! grep -q "^[^ ]* [0-9A-F]* [0-9A-F]* 00010000 .* $socket\$" /proc/net/unix; do
    if ! kill -0 "${backend_pid[$name]}" 2>/dev/null || [ $((tries += 1)) -gt 500 ]; then
      echo "the back-end for $name does not listen; its log says:" >&2
      tail -n 10 "$folder/$name.log" >&2
      return 1
    fi
    sleep 0.02
  done
}

# What the guest runner has to be told about it.
backend_disk() {
  if [ "$backend" = qemu ]; then echo "file=${backend_image[$2]}"; else echo "socket=$1/$2.sock"; fi
}

# backend_stop FOLDER NAME    a polite end; it must be quick and must say 0
backend_stop() {
  local folder=$1 name=$2 pid=${backend_pid[$2]:-} code=0
  [ -n "$pid" ] || return 0
  unset "backend_pid[$name]"
  kill -TERM "$pid" 2>/dev/null || true
  ( sleep 10; kill -KILL "$pid" 2>/dev/null ) &
  local watchdog=$!
  wait "$pid" 2>/dev/null || code=$?
  # Not politely: a shell that hears SIGTERM before it has forgotten its parent's EXIT trap runs it, and cleans up under us.
  kill -KILL "$watchdog" 2>/dev/null || true
  wait "$watchdog" 2>/dev/null || true
  if [ "$code" != 0 ]; then
    echo "the back-end for $name ended with status $code" >>"$folder/$name.log"
    return 1
  fi
}

# Kills what still runs; for an EXIT trap.
backend_abandon() {
  local pid
  for pid in "${backend_pid[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
}

# backend_explain FOLDER NAME FILE    what the running back-end says about itself, as JSON
backend_explain() {
  [ "$backend" = sluice ] || return 0
  timeout 10 "$sluice" explain --json "$1/$2.sock" >"$3.new" 2>>"$1/$2.log" && mv "$3.new" "$3"
}
