# What the scripts that read CSV files share, for `awk -f statistics.awk -f SCRIPT FILE...`.

# Cuts a line of CSV into field[1..n], quotes taken off; returns n.
function cut_csv(line, field,    n, quoted, c, i) {
  n = 1
  field[1] = ""
  quoted = 0
  for (i = 1; i <= length(line); i++) {
    c = substr(line, i, 1)
    if (c == "\"") {
      if (quoted && substr(line, i + 1, 1) == "\"") { field[n] = field[n] c; i++ } else quoted = !quoted
    } else if (c == "," && !quoted) field[++n] = ""
    else field[n] = field[n] c
  }
  return n
}

# Fills column[NAME] = number from a header.
function read_header(line, column,    names, n, i) {
  n = cut_csv(line, names)
  for (i = 1; i <= n; i++) column[names[i]] = i
}

# The 97.5 % quantile of Student's t: half of a 95 % interval in standard errors. Beyond 30 degrees of freedom it is that of
# 30, which is a little too wide.
function student(freedom,    table, values) {
  table = "12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228 2.201 2.179 2.160 2.145 2.131 2.120 2.110 2.101 " \
    "2.093 2.086 2.080 2.074 2.069 2.064 2.060 2.056 2.052 2.048 2.045 2.042"
  split(table, values, " ")
  return values[freedom < 30 ? freedom : 30]
}

# Standard deviation (n - 1) from n, the sum and the sum of squares; 0 for one value.
function deviation(n, sum, squares,    variance) {
  variance = n > 1 ? (squares - sum * sum / n) / (n - 1) : 0
  return variance > 0 ? sqrt(variance) : 0
}
