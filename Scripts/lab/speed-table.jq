# What Scripts/lab/speed measured, for a reader: a line with tabs between its cells a row, then prose.
def n($digits): if . == null then "-" else
    (. * pow(10; $digits) | round | tostring) as $all
    | ("0" * ([$digits + 1 - ($all | length), 0] | max) // "") + $all
    | if $digits == 0 then . else .[:-$digits] + "." + .[-$digits:] end
  end;
def of: if . == null then "-" else "\(.median | n(2)) (\(.min | n(2))..\(.max | n(2)))" end;
def share: 100 * . | round | tostring;
( ["mode", "pattern", "depth", "IOPS", "CPU µs", "IOPS/qsd", "CPU/qsd", "IOPS/QEMU", "CPU/QEMU", "IOPS/off", "QEMU's/off"]
, (.rows[] | [.mode, "\(.rw) \(.block)", (.depth | tostring), (.iops.sluice | n(0)), (.cpu_us.sluice | n(1)),
    (.to_qsd.iops | of), (.to_qsd.cpu | of), (.to_qemu.iops | of), (.to_qemu.cpu | of), (.to_off.sluice | of), (.to_off.qemu | of)])
| join("\t")),
"",
"IOPS and CPU are Sluice\u0027s: requests a second, and microseconds of the whole QEMU process and the back-end for one. /qsd and",
"/QEMU: divided by qemu-storage-daemon\u0027s and by those of QEMU\u0027s own disk, behind the same IOMMU. /off: divided by the same",
"disk\u0027s without an IOMMU. Medians over the rounds of each round\u0027s ratio (least..most).",
"Of \(.processors) processors the guests and back-ends that waited used \(.waiting.median | share) % of one (at most \(.waiting.max | share) %), the rest of the machine",
"\(.foreign.median | share) % of one (at most \(.foreign.max | share) %).",
(if .stalls == [] then empty else "Turns that did not end, for whatever reason: " + ([.stalls[] | "\(.mode) \(.target) \(.pattern)"] | join(", ")) + "." end)
