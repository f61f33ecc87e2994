BEGIN { FS = "\t" }
{ for (i = 1; i <= NF; i++) { cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i) } n[NR] = NF }
END { for (r = 1; r <= NR; r++) { line = ""; for (i = 1; i <= n[r]; i++) line = line (i == 1 ? "" : "  ") sprintf("%" (i <= 2 ? "-" : "") width[i] "s", cell[r, i]); print line } }
