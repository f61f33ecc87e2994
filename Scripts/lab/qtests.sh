# QEMU's own tests of vhost-user disks (vhost-user-blk-test), with Sluice in qemu-storage-daemon's place. Sourced after adverse.sh.

# One wish of theirs is not Sluice's: that a discard of two segments is refused. VIRTIO_BLK_F_DISCARD says how many a device takes
# (max_discard_seg), and Sluice takes more. What that test would look at afterwards is not seen.
qtests_wish='vhost-user-blk-test.c:[0-9]*:test_invalid_discard_write_zeroes: assertion failed (status == VIRTIO_BLK_S_UNSUPP): (0 == 2)'

job_qtests() {
  local folder=$1 mode= started tools one passed=0 wished=0 count=0 failed= reason=
  local name="QEMU's own tests of vhost-user disks"
  started=$(date +%s%N)
  if [ "$backend" != sluice ]; then adverse_able "$name" none || return 0; fi
  if ! tools=$("$tree/Scripts/lab/qtests" 2>"$folder/build.log"); then
    row skipped "$name" "$(tail -n 1 "$folder/build.log")"
    ground_row "not run" "$name" "" "$(tail -n 1 "$folder/build.log")"
    return
  fi
  qos() {
    ( cd "$folder" && SLUICE=$sluice QTEST_QEMU_BINARY=$(command -v qemu-system-x86_64) QEMU_MODULE_DIR=$tools \
        QTEST_QEMU_STORAGE_DAEMON_BINARY=$tree/Scripts/lab/storage-daemon timeout --foreground -k 5 60 "$tools/qos-test" "$@" )
  }
  for one in $(qos -l 2>>"$folder/list.log" | grep '^/.*vhost-user-blk'); do
    count=$((count + 1))
    if qos -p "$one" >"$folder/${one##*/}.log" 2>&1; then passed=$((passed + 1))
    elif grep -q "$qtests_wish" "$folder/${one##*/}.log"; then wished=$((wished + 1))
    else failed+=" ${one##*/}"; fi
  done
  if [ "$count" -lt 6 ]; then reason="there are $count tests, not 6"; fi
  if [ -n "$failed" ]; then reason="failed:$failed"; fi
  adverse_end "$name" "$reason" "$passed of $count passed, $wished up to its wish that two segments of a discard are refused" "$(dpkg-query -W -f "QEMU \${source:Version}" qemu-system-x86)"
}
