# The table of a sweep, a line for each method and ratio: the mean over seeds and models, +- their standard deviation.
# usage: awk -f statistics.awk -f prune_table.awk cells.csv...
FNR == 1 { delete at; read_header($0, at); next }

{
  delete field
  cut_csv($0, field)
  if (field[at["failure"]] != "") next
  name = field[at["method"]] (field[at["ratio"]] > 0 ? " " field[at["ratio"]] : "")
  if (!(name in n)) { order[++rows] = name; ratio_of[name] = field[at["ratio"]] }
  n[name]++
  add("accuracy", 100)
  add("tuned_accuracy", 100)
  add("parameters", 1)
  add("bytes", 1e-6)
  add("measured_flops", 1e-6)
  add("milliseconds", 1)
}

function add(column, scale,    value) {
  value = field[at[column]]
  if (value == "") { missing[column] = 1; return }
  sum[name, column] += scale * value
  squares[name, column] += scale * value * scale * value
}

function percent(name, column) {
  if (missing[column]) return "-"
  if (n[name] == 1) return sprintf("%6.2f", sum[name, column])
  return sprintf("%6.2f +- %.2f", sum[name, column] / n[name], deviation(n[name], sum[name, column], squares[name, column]))
}

# By ratio; methods of one ratio stay in the order of the sweep.
function sort_rows(    i, j, name) {
  for (i = 2; i <= rows; i++) {
    name = order[i]
    for (j = i - 1; j >= 1 && ratio_of[order[j]] > ratio_of[name]; j--) order[j + 1] = order[j]
    order[j + 1] = name
  }
}

END {
  sort_rows()
  printf "%-28s %5s  %-15s  %-15s %10s %6s %6s %8s\n", "model", "seeds", "accuracy %", "finetuned %", "parameters", "MB",
    "MFLOP", "ms/image"
  for (i = 1; i <= rows; i++) {
    name = order[i]
    printf "%-28s %5d  %-15s  %-15s %10d %6.2f %6.2f %8.3f\n", name, n[name], percent(name, "accuracy"),
      percent(name, "tuned_accuracy"), sum[name, "parameters"] / n[name], sum[name, "bytes"] / n[name],
      sum[name, "measured_flops"] / n[name], sum[name, "milliseconds"] / n[name]
  }
}
