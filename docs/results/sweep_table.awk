# A sweep's summary.csv as a table in Markdown: a row a method (and mode, where the sweep has that column), ordered by the
# accuracy at the middle ratio, with the accuracies % at each ratio before -> after finetuning, mean +- standard deviation.
# usage: awk -f examples/statistics.awk -f docs/results/sweep_table.awk SUMMARY.csv
FNR == 1 { read_header($0, at); next }

{
  cut_csv($0, field)
  name = field[at["method"]]
  if (("mode" in at) && field[at["mode"]] != "none") name = name ", " field[at["mode"]]
  ratio = field[at["ratio"]] + 0
  if (!(name in known)) { known[name]; order[++rows] = name }
  if (ratio > 0 && !(ratio in used)) { used[ratio]; ratios[++columns] = ratio }
  accuracy[name, ratio] = field[at["accuracy"]]
  spread[name, ratio] = field[at["accuracy_spread"]]
  tuned[name, ratio] = field[at["tuned_accuracy"]]
  tuned_spread[name, ratio] = field[at["tuned_spread"]]
  flops[name, ratio] = field[at["measured_flops"]]
  speed[name, ratio] = field[at["speed"]]
  if (ratio == 0) whole[name]
}

function percent(value, off) { return sprintf("%.1f +- %.1f", 100 * value, 100 * off) }

function entry(name, ratio,    text) {
  if (accuracy[name, ratio] == "") return "-"
  text = percent(accuracy[name, ratio], spread[name, ratio])
  if (tuned[name, ratio] != "") text = text " -> " percent(tuned[name, ratio], tuned_spread[name, ratio])
  return text
}

function joined(values, name, scale, form,    i, text) {
  if (name in whole) return sprintf(form, scale * values[name, 0])
  for (i = 1; i <= columns; i++)
    text = text (i > 1 ? " / " : "") (values[name, ratios[i]] == "" ? "-" : sprintf(form, scale * values[name, ratios[i]]))
  return text
}

# What removes nothing comes last, then by the accuracy at the middle ratio.
function before(a, b) {
  if ((a in whole) != (b in whole)) return b in whole
  return (a in whole) ? accuracy[a, 0] > accuracy[b, 0] : accuracy[a, middle] + 0 > accuracy[b, middle] + 0
}

END {
  middle = ratios[int((columns + 1) / 2)]
  for (i = 2; i <= rows; i++) {
    name = order[i]
    for (j = i - 1; j >= 1 && before(name, order[j]); j--) order[j + 1] = order[j]
    order[j + 1] = name
  }
  head = "| method |"
  rule = "| --- |"
  for (i = 1; i <= columns; i++) { head = head sprintf(" %g %% |", 100 * ratios[i]); rule = rule " --- |" }
  print head " MFLOP | times as fast |"
  print rule " --- | --- |"
  for (i = 1; i <= rows; i++) {
    name = order[i]
    line = "| " name " |"
    for (c = 1; c <= columns; c++)
      line = line " " ((name in whole) ? (c == 1 ? entry(name, 0) " (nothing removed)" : "") : entry(name, ratios[c])) " |"
    print line " " joined(flops, name, 1e-6, "%.1f") " | " joined(speed, name, 1, "%.2f") " |"
  }
}
