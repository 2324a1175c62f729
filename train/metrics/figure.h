/* Figures: gnuplot scripts beside the CSV files that a run keeps, and the pictures gnuplot draws by them. A script
 * names files of its own folder only, so that whoever has the folder can restyle it and draw again: `gnuplot
 * NAME.gp`. */
#ifndef ESPALIER_FIGURE_H
#define ESPALIER_FIGURE_H

#include <espalier/run_folder.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a curve stands for: the rows in whose column esp_figure.series `value` stands. */
typedef struct esp_figure_series {
  const char *value, *label; /* label NULL: the value */
} esp_figure_series;

/* A dashed horizontal line, to compare with; with low < high a grey band from low to high behind it. */
typedef struct esp_figure_level {
  const char *label;
  double y, low, high;
} esp_figure_level;

/* How far y may be off. */
typedef enum esp_figure_spread {
  ESP_SPREAD_NONE,
  ESP_SPREAD_RANGE,    /* columns low and high hold the ends */
  ESP_SPREAD_DEVIATION /* column low holds what lies on either side of y */
} esp_figure_spread;

/* One pair of axes. What are called columns are names in the CSV file's first line. */
typedef struct esp_figure_panel {
  const char *title;              /* NULL: none */
  const char *x_label, *y_label;  /* with their units */
  const char *x_format;           /* of the numbers on the axis, as gnuplot's "set format"; NULL: its own */
  const char *x, *y, *low, *high; /* columns; see esp_figure_spread */
  const char *where, *is;         /* only rows in whose column `where` stands `is`; NULL: all */
  bool log_x, log_y;
  const esp_figure_level *levels;
  int level_count;
} esp_figure_panel;

/* Panels side by side over one legend. All texts are taken as they are, without markup. */
typedef struct esp_figure {
  const char *csv; /* a file in the figure's folder, long format: a row a point */
  const char *title;
  const char *series; /* column */
  const esp_figure_series *curves;
  int curve_count;
  const esp_figure_panel *panels;
  int panel_count;
  esp_figure_spread spread;
  bool band;           /* the spread is a shaded band, not bars */
  const char *band_of; /* ... of the curve of this value; NULL: of none, unless `band` */
  bool points;         /* points without lines between them */
} esp_figure;

/* Writes folder/name.gp. ESP_ERR_IO, ESP_ERR_MEMORY. */
ESP_API esp_status esp_figure_write(const esp_figure *figure, const char *folder, const char *name) ESP_MUST_CHECK;

typedef enum esp_drawing {
  ESP_DRAWN,
  ESP_NO_GNUPLOT,    /* it is not installed */
  ESP_GNUPLOT_FAILED /* ... or could not draw; the script stays for a look */
} esp_drawing;

/* Has gnuplot draw folder/name.svg and folder/name.png by folder/name.gp. */
ESP_API esp_drawing esp_figure_draw(const char *folder, const char *name);

#ifdef __cplusplus
}
#endif
#endif
