# What Scripts/lab/speed measured, for a reader: a line with tabs between its cells a row, then prose.
def n($digits): if . == null then "-" else
    (. * pow(10; $digits) | round | tostring) as $all
    | ("0" * ([$digits + 1 - ($all | length), 0] | max) // "") + $all
    | if $digits == 0 then . else .[:-$digits] + "." + .[-$digits:] end
  end;
def of: if . == null then "-" else "\(.median | n(2)) (\(.min | n(2))..\(.max | n(2)))" end;
def share: 100 * . | round | tostring;
def pattern: [.mode, "\(.rw) \(.block)", (.depth | tostring)];
# Columns that are there only where they have something to say.
def some($has; cells): if $has then cells else [] end;
([.disks[].name] - ["sluice", "before"]) as $variants
| ([.disks[].name] | any(. == "before")) as $before
| (.rows | any(.to_qsd.iops)) as $qsd
| (.rows | any(.to_qemu.iops)) as $qemu
| (.rows | any(.to_off.sluice)) as $off
| "Images: \(.storage.what).\(if .disk_options == "" then "" else " Every disk: \(.disk_options)." end) A turn: \(.seconds) s.",
(.disks[] | [(if .name == "before" then .program else empty end), (if .options == "" then empty else "sluice " + .options end),
    (if .device == "" then empty else "device " + .device end)] as $what
  | select($what != []) | "\(.name): \($what | join("; "))"),
"",
( (["mode", "pattern", "depth", "IOPS", "CPU µs"]
    + some($before; ["IOPS/before", "CPU/before"]) + [$variants[] | "IOPS \(.)", "CPU \(.)"]
    + some($qsd; ["IOPS/qsd", "CPU/qsd"]) + some($qemu; ["IOPS/QEMU", "CPU/QEMU"])
    + some($off; ["IOPS/off"]) + some($off and $qemu; ["QEMU's/off"]))
, (.rows[] | . as $row | pattern + [(.iops.sluice | n(0)), (.cpu_us.sluice | n(1))]
    + some($before; [(.to_before.iops | of), (.to_before.cpu | of)])
    + [$variants[] | $row.variants[.] | (.iops | of), (.cpu | of)]
    + some($qsd; [(.to_qsd.iops | of), (.to_qsd.cpu | of)]) + some($qemu; [(.to_qemu.iops | of), (.to_qemu.cpu | of)])
    + some($off; [(.to_off.sluice | of)]) + some($off and $qemu; [(.to_off.qemu | of)]))
| join("\t")),
"",
( ["mode", "pattern", "depth", "disk", "questions", "invalidations", "waits", "calls"]
, (.rows[] | . as $row | .each | to_entries[] | .key as $disk | .value
    | ($row | pattern) + [$disk, (.questions | n(3)), (.invalidations | n(3)), (.waits | n(3)), (.calls | n(3))])
| join("\t")),
"",
"IOPS and CPU are Sluice\u0027s: requests a second, and microseconds of the whole QEMU process and the back-end for one. /before:",
"divided by the older Sluice\u0027s. /qsd and /QEMU: divided by qemu-storage-daemon\u0027s and by those of QEMU\u0027s own disk, behind the",
"same IOMMU. /off: divided by the same disk\u0027s without an IOMMU. A variant\u0027s columns: its own divided by Sluice\u0027s. Medians over",
"the rounds of each round\u0027s ratio (least..most). The second table is what a back-end counted, for one request.",
"Of \(.processors) processors the guests and back-ends that waited used \(.waiting.median | share) % of one (at most \(.waiting.max | share) %), the rest of the machine",
"\(.foreign.median | share) % of one (at most \(.foreign.max | share) %)\(if .storage.delay_ms > 0 then ", the late storage among it" else "" end).",
(if .stalls == [] then empty else "Turns that did not end, for whatever reason: " + ([.stalls[] | "\(.mode) \(.target) \(.pattern)"] | join(", ")) + "." end)
