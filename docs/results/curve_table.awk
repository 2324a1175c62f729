# cifar10-curve.csv as a table in Markdown of one recipe; with training accuracies where they were noted.
# usage: awk -v recipe=NAME -f examples/statistics.awk -f docs/results/curve_table.awk cifar10-curve.csv
FNR == 1 { read_header($0, at); next }

{
  cut_csv($0, field)
  if (field[at["recipe"]] != recipe) next
  training = field[at["training_accuracy_percent"]]
  if (!started) {
    print "| epoch |" (training != "" ? " training accuracy % |" : "") " test accuracy % | test loss | minutes |"
    print "| --- |" (training != "" ? " --- |" : "") " --- | --- | --- |"
    started = 1
  }
  printf "| %d |%s %s | %s | %.1f |\n", field[at["epoch"]], training != "" ? " " training " |" : "",
    field[at["accuracy_percent"]], field[at["loss"]], field[at["minutes"]]
}
