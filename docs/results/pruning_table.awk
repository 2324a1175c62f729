# tiny-imagenet-to-cifar10-pruning.csv as a table in Markdown: mean and half the range over seeds.
# usage: awk -f examples/statistics.awk -f docs/results/pruning_table.awk CSV
FNR == 1 { read_header($0, at); next }

{
  cut_csv($0, field)
  name = field[at["model"]]
  if (!(name in n)) {
    order[++rows] = name
    dropped[name] = field[at["ratio"]] > 0 ? 8 * field[at["ratio"]] " of 8" : "none"
  }
  criterion[name] = field[at["criterion"]]
  n[name]++
  add("accuracy")
  add("accuracy_after_finetuning")
  parameters[name] = field[at["parameters"]]
  bytes[name] += field[at["bytes"]]
  flops[name] = field[at["flops_per_image"]]
}

function add(column,    value) {
  if (field[at[column]] == "") return
  value = 100 * field[at[column]]
  k[name, column]++
  sum[name, column] += value
  if (k[name, column] == 1 || value < low[name, column]) low[name, column] = value
  if (k[name, column] == 1 || value > high[name, column]) high[name, column] = value
}

function entry(name, column,    text) {
  if (!k[name, column]) return ""
  text = sprintf("%.2f", sum[name, column] / k[name, column])
  return k[name, column] > 1 ? text sprintf(" +- %.2f", (high[name, column] - low[name, column]) / 2) : text
}

END {
  print "| experts dropped a layer | criterion | seeds | accuracy % | after finetuning % | parameters | MB on disk | MFLOP an image |"
  print "| --- | --- | --- | --- | --- | --- | --- | --- |"
  for (i = 1; i <= rows; i++) {
    name = order[i]
    printf "| %s | %s | %d | %s | %s | %d | %.2f | %.1f |\n", dropped[name], criterion[name], n[name], entry(name, "accuracy"),
      entry(name, "accuracy_after_finetuning"), parameters[name], bytes[name] / n[name] / 1e6, flops[name] / 1e6
  }
}
