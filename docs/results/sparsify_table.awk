# sparsify-NAME.csv of several models as a table in Markdown: accuracy % over the share of neurons left out, all layers
# together.
# usage: awk -f examples/statistics.awk -f docs/results/sparsify_table.awk sparsify-moe.csv sparsify-mone.csv
FNR == 1 {
  read_header($0, at)
  model = FILENAME
  sub(/.*sparsify-/, "", model)
  sub(/\.csv/, "", model)
  next
}

{
  cut_csv($0, field)
  if (field[at["layer"]] != "all") next
  row = model " | " field[at["order"]]
  q = field[at["q"]] + 0
  if (!(row in known)) { known[row]; order[++rows] = row }
  if (!(q in used)) { used[q]; shares[++columns] = q }
  accuracy[row, q] = sprintf("%.1f", 100 * field[at["accuracy"]])
}

END {
  head = "| model | first to go |"
  rule = "| --- | --- |"
  for (c = 1; c <= columns; c++) { head = head " " shares[c] " |"; rule = rule " --- |" }
  print head
  print rule
  for (i = 1; i <= rows; i++) {
    line = "| " order[i] " |"
    for (c = 1; c <= columns; c++) line = line " " accuracy[order[i], shares[c]] " |"
    print line
  }
}
