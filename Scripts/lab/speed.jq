# From a line a turn (Scripts/lab/speed) and what was set, what was measured: {storage, disks, turns, rows, ...}.
def median: sort | if length == 0 then null elif length % 2 == 1 then .[length / 2 | floor] else (.[length / 2 - 1] + .[length / 2]) / 2 end;
def spread: if length == 0 then null else {median: median, min: min, max: max} end;
# Of two series, round by round.
def ratio(a; b; f): [a[] as $x | b[] | select(.round == $x.round) | ($x | f) / f] | spread;

[ inputs | split(" ")
  | { mode: .[0], target: .[1], rw: .[2], block: .[3], depth: (.[4] | tonumber), round: (.[5] | tonumber) }
    + ( .[6:23] | map(tonumber)
      | { qemu_s: (.[0] / 100), backend_s: (.[1] / 100), waiting_s: (.[2] / 100), machine_s: (.[3] / 100), wall_s: (.[4] / 1e6),
          misses: (.[11] - .[5]), questions: (.[12] - .[6]), invalidations: (.[13] - .[7]), calls: (.[14] - .[8]),
          waits: (.[15] - .[9]), requests: (.[16] - .[10]) } )
    + { kib: (.[-2] | tonumber), ms: (.[-1] | tonumber) }
  | if .kib == 0 or .ms == 0 then error("no figure for a turn of \(.mode) \(.target)") else . end
  | .ios = .kib / (.block | rtrimstr("k") | tonumber)
  | .iops = 1000 * .ios / .ms
  | .cpu_us = 1e6 * (.qemu_s + .backend_s) / .ios
  | .foreign = (.machine_s - .qemu_s - .backend_s - .waiting_s) / .wall_s
] as $turns
| def of($mode; $target): [$turns[] | select(.mode == $mode and .target == $target)];
  # by disk, what there is
  def by_disk($names; f): [$names[] as $name | {key: $name, value: ($name | f)} | select(.value != null)] | from_entries;
  ($setting.disks | map(.name)) as $served
| {
    storage: $setting.storage,
    disk_options: $setting.device,
    seconds: $setting.seconds,
    disks: $setting.disks,
    turns: $turns,
    processors: $processors,
    stalls: [$stalls | split("\n")[] | select(. != "") | split(" ") | {mode: .[0], target: .[1], pattern: .[2]}],
    waiting: ([$turns[] | .waiting_s / .wall_s] | spread),
    foreign: ([$turns[] | .foreign] | spread),
    rows: [
      $turns | map({mode, rw, block, depth}) | reduce .[] as $k ([]; if index($k) then . else . + [$k] end) | .[] as $k
      | def pick($mode; $target): [of($mode; $target)[] | select({rw, block, depth} == ($k | {rw, block, depth}))];
        def here($target): pick($k.mode; $target);
        def to($one; $other): {iops: ratio(here($one); here($other); .iops), cpu: ratio(here($one); here($other); .cpu_us)};
        ($served + ["qsd", "qemu"]) as $all
      | $k + {
          iops: by_disk($all; here(.) | map(.iops) | median),
          cpu_us: by_disk($all; here(.) | map(.cpu_us) | median),
          backend_us: by_disk($served + ["qsd"]; here(.) | map(1e6 * .backend_s / .ios) | median),
          to_before: to("sluice"; "before"),
          to_qsd: to("sluice"; "qsd"),
          to_qemu: to("sluice"; "qemu"),
          variants: by_disk($served - ["sluice", "before"]; to(.; "sluice")),
          to_off: (if $k.mode == "off" then null else {
            sluice: ratio(here("sluice"); pick("off"; "sluice"); .iops), qemu: ratio(here("qemu"); pick("off"; "qemu"); .iops) } end),
          each: by_disk($served; here(.) | (map(.requests) | add) as $n | if ($n // 0) == 0 then null else
            {questions: ((map(.questions) | add) / $n), invalidations: ((map(.invalidations) | add) / $n),
             calls: ((map(.calls) | add) / $n), waits: ((map(.waits) | add) / $n)} end)
        }
    ]
  }
