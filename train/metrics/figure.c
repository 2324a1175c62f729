#include <espalier/escape.h>
#include <espalier/figure.h>

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

extern char **environ;

/* These are the colours of Okabe and Ito (2008), which people with any kind of colour blindness can tell apart; the
 * palest one is left out. */
static const char *const colours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"};
static const int symbols[] = {7, 5, 9, 11, 13, 4, 6, 8, 10, 12}; /* filled ones first */
enum {
  COLOUR_COUNT = sizeof colours / sizeof colours[0],
  SYMBOL_COUNT = sizeof symbols / sizeof symbols[0],
  PANEL_WIDTH = 500, /* pixels */
  HEIGHT = 460,
  LETTER_WIDTH = 8,
  KEY_SAMPLE = 85, /* what is left of a label in the legend */
  KEY_LINE = 22    /* of the legend */
};

static void put_column(FILE *file, const char *name) {
  fputs("(column(", file);
  esp_gnuplot_text(file, name);
  fputs("))", file);
}

static const char *label_of(const esp_figure_series *curve) { return curve->label ? curve->label : curve->value; }

static int legend_width(const esp_figure *figure) {
  size_t longest = 0;
  for (int i = 0; i < figure->curve_count; i++)
    if (strlen(label_of(&figure->curves[i])) > longest) longest = strlen(label_of(&figure->curves[i]));
  for (int p = 0; p < figure->panel_count; p++)
    for (int i = 0; i < figure->panels[p].level_count; i++)
      if (strlen(figure->panels[p].levels[i].label) > longest) longest = strlen(figure->panels[p].levels[i].label);
  return (int)longest * LETTER_WIDTH + KEY_SAMPLE;
}

/* A line for each curve and level. */
static int legend_lines(const esp_figure *figure) {
  int lines = figure->curve_count;
  for (int p = 0; p < figure->panel_count; p++) lines += figure->panels[p].level_count;
  return lines;
}

static int figure_height(const esp_figure *figure) {
  const int legend = (legend_lines(figure) + 1) * KEY_LINE * 100 / 72; /* panels have 0.72 of the height */
  return legend > HEIGHT ? legend : HEIGHT;
}

static void put_start(const esp_figure *figure, const char *name, FILE *file) {
  const int legend = legend_width(figure), width = PANEL_WIDTH * figure->panel_count + legend;
  const int height = figure_height(figure);
  const double left = 95.0 / width, right = 1 - (legend + 20.0) / width;
  fprintf(file,
          "# `gnuplot %s.gp` in this folder draws %s.svg and %s.png from %s.\n"
          "set datafile separator comma\n"
          "set datafile columnheaders\n"
          "set datafile missing NaN\n"
          "data = ",
          name, name, name, figure->csv);
  esp_gnuplot_text(file, figure->csv);
  fputs("\nset style line 100 lc rgb '#d8d8d8' lw 1\n"
        "set grid back ls 100\n"
        "set border 3 lc rgb '#404040'\n"
        "set tics nomirror out\n"
        "set autoscale xfix\n"
        "set offsets graph 0.03, graph 0.03, graph 0.05, graph 0.05\n",
        file);
  for (int i = 0; i < figure->curve_count; i++)
    fprintf(file, "set style line %d lc rgb '%s' lw 2 pt %d ps 1.1 dt %d\n", i + 1, colours[i % COLOUR_COUNT],
            symbols[i % SYMBOL_COUNT], i / COLOUR_COUNT % 5 + 1);
  fprintf(file,
          "do for [format in 'svg png'] {\n"
          "if (format eq 'svg') { set terminal svg size %d,%d background 'white' font 'sans-serif,13' }\n"
          "if (format eq 'png') { set terminal pngcairo size %d,%d font 'sans,11' }\n"
          "set output ",
          width, height, width, height);
  esp_gnuplot_text(file, name);
  fprintf(file, ".'.'.format\nset multiplot layout 1,%d title ", figure->panel_count);
  esp_gnuplot_text(file, figure->title);
  fprintf(file, " noenhanced margins %.4f,%.4f,0.14,0.86 spacing %.4f\n", left, right, 105.0 / width);
  fprintf(file, "set key at screen %.4f,0.86 left top Left reverse noenhanced spacing 1.25\n", right + 15.0 / width);
}

/* "data using (x of the chosen rows):" */
static void put_rows(const esp_figure *figure, const esp_figure_panel *panel, int curve, FILE *file) {
  fputs("data using (strcol(", file);
  esp_gnuplot_text(file, figure->series);
  fputs(") eq ", file);
  esp_gnuplot_text(file, figure->curves[curve].value);
  if (panel->where) {
    fputs(" && strcol(", file);
    esp_gnuplot_text(file, panel->where);
    fputs(") eq ", file);
    esp_gnuplot_text(file, panel->is);
  }
  fputs(" ? ", file);
  put_column(file, panel->x);
  fputs(" : NaN):", file);
}

static void put_ends(const esp_figure *figure, const esp_figure_panel *panel, FILE *file) {
  static const char *const signs[] = {"-", "+"};
  for (int end = 0; end < 2; end++) {
    if (end) fputc(':', file);
    if (figure->spread == ESP_SPREAD_RANGE) {
      put_column(file, end ? panel->high : panel->low);
      continue;
    }
    fputc('(', file);
    put_column(file, panel->y);
    fputs(signs[end], file);
    put_column(file, panel->low);
    fputc(')', file);
  }
}

static bool has_band(const esp_figure *figure, int curve) {
  const bool named = figure->band_of && strcmp(figure->curves[curve].value, figure->band_of) == 0;
  return figure->spread != ESP_SPREAD_NONE && (figure->band || named);
}

static void put_curve(const esp_figure *figure, const esp_figure_panel *panel, int curve, FILE *file) {
  const bool bars = figure->spread != ESP_SPREAD_NONE && !has_band(figure, curve);
  put_rows(figure, panel, curve, file);
  put_column(file, panel->y);
  if (bars) {
    fputc(':', file);
    put_ends(figure, panel, file);
  }
  const char *style = bars ? figure->points ? "yerrorbars" : "yerrorlines" : figure->points ? "points" : "linespoints";
  fprintf(file, " with %s ls %d title ", style, curve + 1);
  esp_gnuplot_text(file, label_of(&figure->curves[curve]));
}

static void put_band(const esp_figure *figure, const esp_figure_panel *panel, int curve, FILE *file) {
  put_rows(figure, panel, curve, file);
  put_ends(figure, panel, file);
  fprintf(file, " with filledcurves fc rgb '%s' fs transparent solid 0.18 noborder notitle, \\\n  ",
          colours[curve % COLOUR_COUNT]);
}

static void put_levels(const esp_figure_panel *panel, FILE *file) {
  static const char *const greys[] = {"#404040", "#808080", "#a0a0a0"};
  for (int i = 0; i < panel->level_count; i++) {
    fprintf(file, ", \\\n  %.9g with lines lw 1.5 dt %d lc rgb '%s' title ", panel->levels[i].y, i % 4 + 2,
            greys[i % 3]);
    esp_gnuplot_text(file, panel->levels[i].label);
  }
}

static void put_axis(const char *axis, const char *label, bool logarithmic, FILE *file) {
  fprintf(file, "%s logscale %s\nset %slabel ", logarithmic ? "set" : "unset", axis, axis);
  esp_gnuplot_text(file, label);
  fputs(" noenhanced\n", file);
}

static void put_panel(const esp_figure *figure, const esp_figure_panel *panel, FILE *file) {
  put_axis("x", panel->x_label, panel->log_x, file);
  put_axis("y", panel->y_label, panel->log_y, file);
  fputs("set format x ", file);
  esp_gnuplot_text(file, panel->x_format ? panel->x_format : "%h");
  fputs("\nset title ", file);
  esp_gnuplot_text(file, panel->title ? panel->title : "");
  fputs(" noenhanced\nunset object\n", file);
  for (int i = 0; i < panel->level_count; i++)
    if (panel->levels[i].low < panel->levels[i].high)
      fprintf(file,
              "set object rectangle from graph 0, first %.9g to graph 1, first %.9g behind fc rgb '#e8e8e8' fs solid "
              "noborder\n",
              panel->levels[i].low, panel->levels[i].high);
  fputs("plot ", file);
  for (int i = 0; i < figure->curve_count; i++)
    if (has_band(figure, i)) put_band(figure, panel, i, file);
  for (int i = 0; i < figure->curve_count; i++) {
    if (i) fputs(", \\\n  ", file);
    put_curve(figure, panel, i, file);
  }
  put_levels(panel, file);
  fputs("\nunset key\n", file); /* one legend serves all panels */
}

typedef struct script {
  const esp_figure *figure;
  const char *name;
} script;

static void put_script(const void *context, FILE *file) {
  const script *s = context;
  put_start(s->figure, s->name, file);
  for (int i = 0; i < s->figure->panel_count; i++) put_panel(s->figure, &s->figure->panels[i], file);
  fputs("unset multiplot\n}\nset output\n", file);
}

esp_status esp_figure_write(const esp_figure *figure, const char *folder, const char *name) {
  char file_name[256];
  snprintf(file_name, sizeof file_name, "%s.gp", name);
  return esp_file_compose(folder, file_name, put_script, &(script){figure, name});
}

/* --- drawing -------------------------------------------------------------------------------------------- */

/* gnuplot goes to the folder before it opens the script. */
static char *go_to(const char *folder) {
  char *text = NULL;
  size_t size;
  FILE *file = open_memstream(&text, &size);
  if (!file) return NULL;
  fputs("cd ", file);
  esp_gnuplot_text(file, folder);
  if (fclose(file) == 0) return text;
  free(text);
  return NULL;
}

static int run_gnuplot(char *const words[], int *exit_status) {
  posix_spawn_file_actions_t actions;
  pid_t child;
  if (posix_spawn_file_actions_init(&actions) != 0) return -1;
  for (int file = 0; file < 3; file++)
    posix_spawn_file_actions_addopen(&actions, file, "/dev/null", file ? O_WRONLY : O_RDONLY, 0);
  const int error = posix_spawnp(&child, words[0], &actions, NULL, words, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error) return error;
  return waitpid(child, exit_status, 0) == child ? 0 : -1;
}

esp_drawing esp_figure_draw(const char *folder, const char *name) {
  char program[] = "gnuplot", option[] = "-e", file_name[256];
  char *start = go_to(folder);
  if (!start) return ESP_GNUPLOT_FAILED;
  snprintf(file_name, sizeof file_name, "%s.gp", name);
  int exit_status = 0;
  const int error = run_gnuplot((char *[]){program, option, start, file_name, NULL}, &exit_status);
  free(start);
  /* 127: some systems find out only in the child that there is no such program. */
  if (error > 0 || (WIFEXITED(exit_status) && WEXITSTATUS(exit_status) == 127)) return ESP_NO_GNUPLOT;
  return error == 0 && exit_status == 0 ? ESP_DRAWN : ESP_GNUPLOT_FAILED;
}
