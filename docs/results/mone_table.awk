# The summary of `espalier compare` as a table in Markdown: mean and standard deviation over seeds, differences from the MoE
# paired by seed.
# usage: awk -f examples/statistics.awk -f docs/results/mone_table.awk SUMMARY.csv
FNR == 1 {
  read_header($0, at)
  print "| variant | experts a token | K_N | accuracy % | minus MoE | activated, W_gate in full | activated, selected only |" \
    " MFLOP computed / if skipped | Gini of use % | one image, ms |"
  print "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
  next
}

function value(column) { return field[at[column]] }

{
  cut_csv($0, field)
  minus = value("variant") == "moe" ? "" : sprintf("%+.2f +- %.2f", 100 * value("accuracy_difference"),
    100 * value("accuracy_difference_deviation"))
  printf "| %s | %d | %d | %.2f +- %.2f | %s | %d | %d | %.1f / %.1f | %s | %.3f |\n", value("variant"), value("top_k"),
    value("neurons_kept"), 100 * value("accuracy"), 100 * value("accuracy_deviation"), minus, value("activated_parameters"),
    value("activated_parameters_selected"), value("flops_per_image") / 1e6, value("flops_per_image_selected") / 1e6,
    value("neuron_gini") == "" ? "-" : sprintf("%.1f", 100 * value("neuron_gini")), value("milliseconds_per_image")
}
