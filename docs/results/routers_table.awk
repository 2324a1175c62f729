# routers.csv, as examples/router_table.sh writes it, as a table in Markdown: mean and half the range over seeds.
# usage: awk -f examples/statistics.awk -f docs/results/routers_table.awk routers.csv
FNR == 1 { read_header($0, at); next }

{
  cut_csv($0, field)
  name = field[at["router"]]
  if (!(name in n)) order[++rows] = name
  n[name]++
  value = 100 * field[at["accuracy"]]
  sum[name] += value
  if (n[name] == 1 || value < low[name]) low[name] = value
  if (n[name] == 1 || value > high[name]) high[name] = value
  parameters[name] = field[at["parameters"]]
  activated[name] = field[at["activated_parameters"]]
  flops[name] = field[at["flops_per_image"]]
  imbalance[name] += field[at["imbalance"]]
  dead[name] += field[at["dead_experts"]]
}

END {
  print "| router | accuracy % | parameters | activated | MFLOP an image | imbalance | dead experts |"
  print "| --- | --- | --- | --- | --- | --- | --- |"
  for (i = 1; i <= rows; i++) {
    name = order[i]
    printf "| %s | %.2f +- %.2f | %d | %d | %.2f | %.2f | %g |\n", name, sum[name] / n[name], (high[name] - low[name]) / 2,
      parameters[name], activated[name], flops[name] / 1e6, imbalance[name] / n[name], dead[name] / n[name]
  }
}
