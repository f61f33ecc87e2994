# What `sluice explain --json` says, in rows for a person and as a check. Sourced.

# 4096 -> "4 KiB"
amount() { awk -v n="$1" 'BEGIN { split("bytes KiB MiB GiB", u); i = 1; while (n >= 1024 && i < 4) { n /= 1024; i++ }
  printf(n == int(n) ? "%d %s" : "%.1f %s", n, u[i]) }'; }

# wrong_figures FILE IOMMU [withheld]    prints what is wrong with a sample, nothing if all is as it must be; `withheld` says
# that the back-end was told to keep the bit to itself
wrong_figures() {
  local accepted=true path=platform offered=true
  if [ "${3:-}" = withheld ]; then offered=false; fi
  if [ "$2" = off ]; then accepted=false path=physical; fi
  jq -r --argjson accepted "$accepted" --arg path "$path" --argjson offered "$offered" '
    if .access_platform_offered != $offered then "ACCESS_PLATFORM was \(if $offered then "not " else "" end)offered"
    elif .access_platform_accepted != $accepted then "ACCESS_PLATFORM accepted: \(.access_platform_accepted), expected \($accepted)"
    elif .address_path != $path then "the address path is \(.address_path), expected \($path)"
    elif .faults != 0 then "\(.faults) faults"
    elif .requests == 0 or .completions == 0 then "no request was counted"
    elif .failed_sessions != 0 then "\(.failed_sessions) connections failed"
    elif .lost_pages != 0 then "\(.lost_pages) pages lost"
    elif .reachable_bytes > .memory_bytes or .peak_reachable_bytes > .memory_bytes then "more is reachable than there is"
    elif $path == "physical" and .reachable_bytes != .memory_bytes then "without an IOMMU all memory is reachable, not \(.reachable_bytes)"
    elif $path == "platform" and .updates == 0 then "translated without a single mapping"
    else empty end' "$1" 2>&1 || echo "explain's answer cannot be read"
}

# figure_rows FOLDER    the rows of make try, from the samples taken at `writing` and `unmounted`, and from the guest's last report
figure_rows() {
  local last=$1/unmounted.json
  field() { jq -r "$1" "$last"; }
  row decision "VIRTIO_F_ACCESS_PLATFORM was $(field 'if .access_platform_offered then "offered" else "not offered" end') and $(
    field 'if .access_platform_accepted then "accepted: addresses go through the IOMMU" else "not accepted: addresses are physical" end')"
  row why "$(field .reason)"
  row requests "$(field .requests): $(amount "$(field .written_bytes)") read by the guest, $(amount "$(field .readable_bytes)") written by it"
  row exposure "$(amount "$(field .reachable_bytes)") reachable now, $(amount "$(field .peak_reachable_bytes)") at most ($(
    field '.peak_reachable_bytes * 1000 / .memory_bytes | round / 10') %), of $(amount "$(field .memory_bytes)") of guest memory"
  if [ "$(field .address_path)" = platform ]; then
    row mappings "$(field .updates) received, $(field .invalidations) invalidations, $(field .mappings) in force now"
  fi
  # The guest counts what its kernel logs: up to the driver's first request, and from then on.
  local early late
  late=$(sed -n 's/^SLUICE-GUEST kernel=.* faults=\([0-9]*\) .*/\1/p' "$1/talk.log")
  early=$(sed -n 's/^SLUICE-GUEST kernel=.* early_faults=\([0-9]*\) .*/\1/p' "$1/talk.log")
  row faults "$(field .faults) told by Sluice; in the guest's log $((early + late))$(
    if [ "$early" != 0 ]; then echo ", before the driver's first request: QEMU's look at a ring of the firmware, see README"; fi)"
}
