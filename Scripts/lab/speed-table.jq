# What Scripts/lab/speed measured, for a reader: cells with tabs between them, notes after an empty line.
def n($digits): if . == null then "-" else . * pow(10; $digits) | round | . / pow(10; $digits) | tostring
  | if $digits == 0 then . else (split(".") + [""])[0:2] | .[0] + "." + (.[1] + "000")[0:$digits] end end;
def of: if . == null then "-" else "\(.median | n(2)) (\(.min | n(2))..\(.max | n(2)))" end;
( ["mode", "pattern", "depth", "IOPS", "CPU µs", "/ qsd: IOPS", "CPU", "/ QEMU: IOPS", "CPU", "/ off: Sluice", "QEMU"]
, (.rows[] | [.mode, "\(.rw) \(.block)", (.depth | tostring), (.iops.sluice | n(0)), (.cpu_us.sluice | n(1)),
    (.to_qsd.iops | of), (.to_qsd.cpu | of), (.to_qemu.iops | of), (.to_qemu.cpu | of), (.to_off.sluice | of), (.to_off.qemu | of)])
) | join("\t")
