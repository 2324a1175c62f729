# Says whether one method of a sweep is better than another, and by how much. Compared is the mean accuracy over all ratios
# that both have. With several pretrained models the differences are those of the models, with one model those of the
# seeds; their mean has a 95 % interval by Student's t. Shown is what lies wholly above zero, opposite what lies below it, and
# unknown what seeds do not change where there is one model.
# usage: awk -v better=METHOD -v than=METHOD [-v column=accuracy] [-v claim=TEXT] -f statistics.awk -f verdict.awk CSV...
#   than         may be unpruned, which is compared at every ratio
#   than_column  of the other method (default: column)
#   setting      looks only at rows of this setting, where there is such a column
#   least, most  look only at ratios from least to most
#   margin       points by which `better` may be worse (default 0)
#   short        1: prints the difference and its interval only
BEGIN {
  if (column == "") column = "accuracy"
  if (than_column == "") than_column = column
  if (claim == "") claim = better " above " than
  if (most == "") most = 1
  least += 0
  margin += 0
  rounding = 1e-6
}

FNR == 1 { delete at; read_header($0, at); next }
setting != "" { cut_csv($0, field); if (field[at["setting"]] != setting) next }

{
  cut_csv($0, field)
  ratio = field[at["ratio"]] + 0
  method = field[at["method"]]
  model = field[at["model"]]
  seed = field[at["seed"]]
  if (method == than && than == "unpruned") ratio = "all"
  else if (ratio < least || ratio > most) next
  if (method == better) note("better", field[at[column]])
  if (method == than) note("than", field[at[than_column]])
}

function note(side, text) {
  if (text == "") return
  models[model]
  seeds[seed]
  if (ratio != "all") ratios[ratio]
  value[side, model, ratio, seed] = 100 * text
  sum[side, model, ratio] += 100 * text
  count[side, model, ratio]++
}

# Of one model, over the ratios; with `seed` the baseline of that seed alone. "": nothing to compare.
function difference(model, seed,    ratio, base, total, n) {
  for (ratio in ratios) {
    base = than == "unpruned" ? "all" : ratio
    if (!count["better", model, ratio] || !count["than", model, base]) continue
    if (seed != "" && !(("than", model, base, seed) in value)) continue
    total += sum["better", model, ratio] / count["better", model, ratio]
    total -= seed != "" ? value["than", model, base, seed] : sum["than", model, base] / count["than", model, base]
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
  unit = known > 1 ? "pretrained models" : "seeds, one pretrained model"
  if (n < 2) {
    if (short) printf "-\n"
    else printf "%-9s  %s: %d differences are too few\n", "unknown", claim, n
    exit
  }
  middle = total / n
  off = deviation(n, total, squares)
  half = student(n - 1) * off / sqrt(n)
  if (known < 2 && off < rounding) {
    if (short) printf "%+.1f (one model)\n", middle
    else printf "%-9s  %s: by %+.1f points on the one pretrained model, which seeds do not change\n", "unknown", claim, middle
    exit
  }
  said = middle - half + margin > rounding ? "shown" : middle + half + margin < -rounding ? "opposite" : "not shown"
  if (short) printf "%+.1f (%+.1f to %+.1f)\n", middle, middle - half, middle + half
  else printf "%-9s  %s: by %+.1f points (95 %% interval %+.1f to %+.1f, %d %s)\n", said, claim, middle, middle - half,
    middle + half, n, unit
}
