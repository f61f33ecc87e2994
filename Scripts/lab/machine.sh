# A machine under a monitor: for what has to be done to a running guest from outside. Sourced after lab.sh.
#
# Several may run at once, each in a folder of its own: talk.log (the guest's reports), console.log, qmp.log, qemu.log.

declare -A machine_pid=()
# No multiple of 256 KiB: of such memory QEMU before 9.0 forgets, under emulation, which pages were written while it migrates.
# It clears their dirty bits there by the word and leaves the translated code's cache as it is; the guest then wakes up with
# pages of some seconds ago, whichever back-end it has. Page by page it does it right.
machine_memory=393224K
machine_words="console=ttyS0 loglevel=5 mitigations=off tsc=reliable panic=0"

# machine_start FOLDER IOMMU WORDS [QEMU-OPTION...]    IOMMU is off or strict; WORDS go to the kernel; returns when the monitor answers
# With MACHINE_BOOT, a disk that starts a kernel with words of its own, WORDS go nowhere.
machine_start() {
  local folder=$1 iommu=$2 words=$3 channel
  shift 3
  local machine=(-nodefaults -no-user-config -display none -accel "tcg,thread=${MACHINE_THREADS:-multi}" -cpu qemu64,+rdrand,+ssse3,+sse4.1,+sse4.2 -smp "${MACHINE_CPUS:-2}")
  case $iommu in
    off) ;;
    strict) machine+=(-device intel-iommu,intremap=off,device-iotlb=on); words+=" intel_iommu=on iommu.strict=1" ;;
    *) die "a machine's IOMMU is off or strict, not '$iommu'" ;;
  esac
  if [ -n "${MACHINE_BOOT:-}" ]; then
    machine+=(-drive "if=none,id=boot,format=raw,file=$MACHINE_BOOT,file.locking=off" -device ide-hd,drive=boot,bootindex=0)
  else
    machine+=(-kernel "$("$tree/Scripts/lab/kernel" 6.1)/image" -initrd "$("$tree/Scripts/lab/initramfs" 6.1)" -append "$machine_words $words")
  fi
  mkdir -p "$folder"
  for channel in talk qmp; do
    rm -f "$folder/$channel.in" "$folder/$channel.out"
    mkfifo "$folder/$channel.in" "$folder/$channel.out"
    touch "$folder/$channel.log"
  done
  # A reader for each that ends with QEMU; QEMU opens both ends itself and so waits for nobody.
  (
    timeout --foreground -s KILL "${MACHINE_SECONDS:-$limit}" qemu-system-x86_64 "${machine[@]}" \
      -machine q35,memory-backend=mem -m "$machine_memory${MACHINE_MORE_MEMORY:-}" -object "memory-backend-memfd,id=mem,size=$machine_memory,share=on" \
      -serial "file:$folder/console.log" -chardev "pipe,id=talk,path=$folder/talk" -serial chardev:talk \
      -chardev "pipe,id=qmp,path=$folder/qmp" -mon chardev=qmp,mode=control \
      "$@" </dev/null >>"$folder/qemu.log" 2>&1 &
    child=$!
    echo "$child" >"$folder/pid"
    # what runs QEMU passes this on to it
    trap 'kill -TERM "$child" 2>/dev/null' TERM
    wait "$child" || wait "$child"
  ) &
  machine_pid[$folder]=$!
  # opened for both, so that neither side sees an end while the other is not there yet
  exec {machine_talk}<>"$folder/talk.out" {machine_qmp}<>"$folder/qmp.out"
  # byte by byte as it comes: a line may be begun in one machine and ended in the one it migrates to
  cat <&"$machine_talk" >>"$folder/talk.log" &
  echo $! >"$folder/readers"
  cat <&"$machine_qmp" >>"$folder/qmp.log" &
  echo $! >>"$folder/readers"
  exec {machine_talk}>&- {machine_qmp}>&-
  ask "$folder" qmp_capabilities >/dev/null
}

# The options for a disk behind a root port of its own.    machine_disk NUMBER SOCKET IOMMU [MORE]
machine_disk() {
  machine_port "$1"
  machine_options+=(-chardev "socket,id=chardev$1,path=$2${machine_socket_more:-}" -device "vhost-user-blk-pci,id=disk$1,chardev=chardev$1,$(machine_disk_options "$1" "$3")${4:-}")
}
machine_port() { machine_options+=(-device "pcie-root-port,id=port$1,chassis=$(($1 + 1)),slot=$(($1 + 1))"); }
machine_disk_options() {
  echo "bus=port$1,num-queues=1,disable-legacy=on$(if [ "$2" != off ]; then echo ,iommu_platform=on,ats=on; fi)"
}

machine_runs() { kill -0 "${machine_pid[$1]:-0}" 2>/dev/null; }

# Waits until a condition holds: a shell command, tried twenty times a second.    until_holds SECONDS COMMAND...
until_holds() {
  local tries=$(($1 * 20))
  shift
  until "$@"; do
    [ $((tries -= 1)) -gt 0 ] || return 1
    sleep 0.05
  done
}

# ask FOLDER COMMAND [ARGUMENTS]    a question to the monitor; prints the answer's value, fails with its error
ask() {
  local folder=$1 number=${EPOCHREALTIME//[!0-9]/} answer
  printf '{"execute":"%s","arguments":%s,"id":%d}\n' "$2" "${3:-"{}"}" "$number" >"$folder/qmp.in"
  answered() { grep -q "\"id\": $number[,}]" "$folder/qmp.log" || ! machine_runs "$folder"; }
  until_holds "${ASK_SECONDS:-30}" answered || { echo "the monitor does not answer $2" >&2; return 1; }
  answer=$(grep "\"id\": $number[,}]" "$folder/qmp.log") || { echo "QEMU ended before it answered $2" >&2; return 1; }
  if [ "$(jq -r 'has("error")' <<<"$answer")" = true ]; then jq -r .error.desc <<<"$answer" >&2; return 1; fi
  jq -c .return <<<"$answer"
}

# events FOLDER NAME    how many of these there were
events() { grep -c "\"event\": \"$2\"" "$1/qmp.log" || true; }
# The guest's reports: how many lines of a kind, and waiting for one more.
heard() { grep -c "SLUICE-GUEST $2" "$1/talk.log" || true; }
more_heard() { [ "$(heard "$1" "$2")" -ge "$3" ] || ! machine_runs "$1"; }
# hear FOLDER PATTERN COUNT SECONDS    until there are COUNT more lines
hear() {
  local before
  before=$(heard "$1" "$2")
  until_holds "$4" more_heard "$1" "$2" $((before + $3)) && [ "$(heard "$1" "$2")" -ge $((before + $3)) ]
}
tell() { echo "$2" >"$1/talk.in"; }

# Waits for QEMU's own end.    machine_ended FOLDER SECONDS
machine_ended() {
  gone() { ! machine_runs "$1"; }
  until_holds "$2" gone "$1" || return 1
  machine_drop "$1"
}

# Ends it at once.
machine_drop() {
  local pid
  if [ -n "${machine_pid[$1]:-}" ]; then
    kill -TERM "${machine_pid[$1]}" 2>/dev/null || true
    wait "${machine_pid[$1]}" 2>/dev/null || true
    unset "machine_pid[$1]"
  fi
  # what is still in the pipes is read first, what comes after the wait belongs to nobody
  sleep 0.2
  for pid in $(cat "$1/readers" 2>/dev/null); do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done
  rm -f "$1"/{talk,qmp}.{in,out} "$1/readers"
}
machines_abandon() { local folder; for folder in "${!machine_pid[@]}"; do machine_drop "$folder"; done; }
