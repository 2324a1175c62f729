# Says whether one method of a sweep is better than another, and by how much. Compared is the mean accuracy over all ratios
# that both have. With several pretrained models (of the files together) the differences are those of the models, with one
# model those of the seeds; their mean has a 95 % interval by Student's t. Shown is what lies wholly above zero.
# usage: awk -v better=METHOD -v than=METHOD [-v column=accuracy] [-v claim=TEXT] -f statistics.awk -f verdict.awk cells.csv...
BEGIN {
  if (column == "") column = "accuracy"
  if (claim == "") claim = better " above " than
}

FNR == 1 { delete at; read_header($0, at); next }

{
  delete field
  cut_csv($0, field)
  method = field[at["method"]]
  if ((method != better && method != than) || field[at[column]] == "") next
  model = field[at["model"]]
  ratio = field[at["ratio"]]
  seed = field[at["seed"]]
  models[model]
  seeds[seed]
  ratios[ratio]
  value[model, ratio, seed, method] = 100 * field[at[column]]
  sum[model, ratio, method] += 100 * field[at[column]]
  count[model, ratio, method]++
}

# Of one model, over the ratios; with `seed` the baseline of that seed alone. "": nothing to compare.
function difference(model, seed,    ratio, total, n, base, own) {
  for (ratio in ratios) {
    if (!count[model, ratio, better] || !count[model, ratio, than]) continue
    own = sum[model, ratio, better] / count[model, ratio, better]
    base = sum[model, ratio, than] / count[model, ratio, than]
    if (seed != "") {
      if (!((model, ratio, seed, than) in value)) continue
      base = value[model, ratio, seed, than]
    }
    total += own - base
    n++
  }
  return n ? total / n : ""
}

function add(d) {
  if (d == "") return
  n++
  total += d
  squares += d * d
}

END {
  for (model in models) if (difference(model, "") != "") known++
  for (model in models) {
    if (known > 1) add(difference(model, ""))
    else for (seed in seeds) add(difference(model, seed))
  }
  unit = known > 1 ? "pretrained models" : "seeds of " than
  if (n < 2) {
    printf "%-9s  %s: %d %s, no interval\n", "unknown", claim, n, unit
    exit
  }
  middle = total / n
  half = student(n - 1) * deviation(n, total, squares) / sqrt(n)
  said = middle - half > 0 ? "shown" : middle + half < 0 ? "opposite" : "not shown"
  printf "%-9s  %s: by %+.1f points (95 %% interval %+.1f to %+.1f, %d %s)\n", said, claim, middle, middle - half,
    middle + half, n, unit
}
