# A table in Markdown of one setting's accuracies: a row a method, a column for each number of experts dropped; the mean over
# pretrained models and seeds, +- their standard deviation.
# usage: awk -v setting=NAME -v column=accuracy -v experts=8 -f ../statistics.awk -f curves.awk CSV
FNR == 1 { read_header($0, at); next }

{
  cut_csv($0, field)
  value = field[at[column]]
  if (field[at["setting"]] != setting || value == "") next
  method = field[at["method"]]
  dropped = int(field[at["ratio"]] * experts + 0.5)
  if (!(method in known)) { known[method]; if (method != "unpruned") order[++methods] = method }
  if (method != "unpruned") used[dropped]
  n[method, dropped]++
  sum[method, dropped] += 100 * value
  squares[method, dropped] += 100 * value * 100 * value
}

function entry(method, dropped,    k) {
  k = n[method, dropped]
  if (!k) return "-"
  return sprintf("%.1f +- %.1f", sum[method, dropped] / k, deviation(k, sum[method, dropped], squares[method, dropped]))
}

END {
  head = "| dropped of " experts " | 0 |"
  rule = "| --- | --- |"
  for (d = 1; d < experts; d++) if (d in used) { head = head " " d " |"; rule = rule " --- |" }
  print head
  print rule
  for (i = 1; i <= methods; i++) {
    line = "| " order[i] " | " entry("unpruned", 0) " |"
    for (d = 1; d < experts; d++) if (d in used) line = line " " entry(order[i], d) " |"
    print line
  }
}
