# A sweep's summary.csv with several calibration sets as a table in Markdown: a row a criterion, a column a ratio, in each the
# accuracies % before finetuning by calibration set, mean +- standard deviation.
# usage: awk -f examples/statistics.awk -f docs/results/calibration_table.awk SUMMARY.csv
FNR == 1 { read_header($0, at); next }

{
  cut_csv($0, field)
  method = field[at["method"]]
  ratio = field[at["ratio"]] + 0
  set = field[at["calibration"]]
  if (set == "none") next
  if (!(method in known)) { known[method]; order[++rows] = method }
  if (!(ratio in used)) { used[ratio]; ratios[++columns] = ratio }
  if (!(set in seen)) { seen[set]; sets[++count] = set }
  text[method, ratio, set] = sprintf("%.1f +- %.1f", 100 * field[at["accuracy"]], 100 * field[at["accuracy_spread"]])
}

# Matched first, then by name.
function sort_sets(    i, j, set) {
  for (i = 2; i <= count; i++) {
    set = sets[i]
    for (j = i - 1; j >= 1 && sets[j] != "matched" && (set == "matched" || sets[j] > set); j--) sets[j + 1] = sets[j]
    sets[j + 1] = set
  }
}

function sort_rows(    i, j, name) {
  for (i = 2; i <= rows; i++) {
    name = order[i]
    for (j = i - 1; j >= 1 && order[j] > name; j--) order[j + 1] = order[j]
    order[j + 1] = name
  }
}

END {
  sort_sets()
  sort_rows()
  names = sets[1]
  for (s = 2; s <= count; s++) names = names " / " sets[s]
  head = "| criterion, calibrated on " names " |"
  rule = "| --- |"
  for (c = 1; c <= columns; c++) { head = head sprintf(" %g %% |", 100 * ratios[c]); rule = rule " --- |" }
  print head
  print rule
  for (i = 1; i <= rows; i++) {
    line = "| " order[i] " |"
    for (c = 1; c <= columns; c++) {
      line = line " "
      for (s = 1; s <= count; s++) line = line (s > 1 ? " / " : "") text[order[i], ratios[c], sets[s]]
      line = line " |"
    }
    print line
  }
}
