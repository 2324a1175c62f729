# A CSV file as it is, as a table in Markdown.
# usage: awk -f examples/statistics.awk -f docs/results/csv_table.awk FILE.csv
{
  n = cut_csv($0, field)
  line = "|"
  rule = "|"
  for (i = 1; i <= n; i++) { line = line " " field[i] " |"; rule = rule " --- |" }
  print line
  if (FNR == 1) print rule
}
