# Bars from what Scripts/lab/speed --json says: requests a second of every disk, a group for each mode and pattern.
#   jq -r -f Scripts/lab/speed-picture.jq RESULT >PICTURE.svg
def names: {sluice: "Sluice", before: "an older Sluice", qemu: "QEMU's own disk", qsd: "qemu-storage-daemon", noind: "Sluice, indirect_desc=off"};
def colours: {before: "#b9c6d2", sluice: "#2f6f9f", noind: "#1f9d77", qsd: "#8a8a8a", qemu: "#d9a441"};
def escaped: gsub("&"; "&amp;") | gsub("<"; "&lt;");
. as $all
| ([.disks[].name] + ([.rows[].iops | keys[]] | unique - [$all.disks[].name]) | sort_by({before: 0, sluice: 1, noind: 2, qsd: 3, qemu: 4}[.] // 5)) as $disks
| ([.rows[].iops[]] | max) as $most
| 190 as $left | 470 as $wide | 13 as $bar
| (($disks | length) * $bar + 14) as $group
| (52 + (.rows | length) * $group + 10) as $high
| "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 \($high)\" font-family=\"sans-serif\" font-size=\"12\" role=\"img\">",
  "<title>Requests a second in a guest behind VT-d, by mode, pattern and disk</title>",
  "<rect width=\"760\" height=\"\($high)\" fill=\"#ffffff\"/>",
  ($disks | to_entries[] | "<rect x=\"\(12 + .key * 185)\" y=\"14\" width=\"12\" height=\"12\" fill=\"\(colours[.value] // "#666")\"/><text x=\"\(29 + .key * 185)\" y=\"24\" fill=\"#222\">\(.value as $n | names[$n] // $n | escaped)</text>"),
  (.rows | to_entries[] | .key as $i | .value as $row | (46 + $i * $group) as $y
    | "<text x=\"12\" y=\"\($y + ($disks | length) * $bar / 2 + 4)\" fill=\"#222\">\($row.mode), \($row.rw) \($row.block), \($row.depth)</text>",
      ($disks | to_entries[] | select($row.iops[.value] != null) | ($row.iops[.value] / $most * $wide) as $w
        | "<rect x=\"\($left)\" y=\"\($y + .key * $bar)\" width=\"\($w * 10 | round / 10)\" height=\"\($bar - 2)\" fill=\"\(colours[.value] // "#666")\"/><text x=\"\($left + $w + 5 | round)\" y=\"\($y + .key * $bar + 10)\" font-size=\"10\" fill=\"#444\">\($row.iops[.value] | round)</text>")),
  "</svg>"
