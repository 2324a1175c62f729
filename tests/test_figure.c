/* label: short */
/* Figures: what gnuplot draws by the scripts, in folders and with texts that need quoting, and what is said when it
 * cannot draw. */
#include "testing.h"

#include <espalier/figure.h>

static char folder[TESTING_PATH_SIZE];

static const char table[] = "layer,order,\"q\",accuracy,deviation,low,high\n"
                            "all,\"smallest\",0,0.70,0.01,0.69,0.71\n"
                            "all,largest,0,0.70,0.02,0.68,0.72\n"
                            "all,smallest,0.5,0.68,0.01,0.67,0.69\n"
                            "all,largest,0.5,0.30,0.04,0.26,0.34\n"
                            "blocks.0.moe,smallest,0.5,9,1,8,10\n";

static const esp_figure_series curves[] = {{"smallest", "the smallest's"}, {"largest", NULL}};
static const esp_figure_level levels[] = {{"a guess", 0.1, 0.08, 0.12}};

static esp_figure example(const esp_figure_panel *panels, int count) {
  return (esp_figure){.csv = "table.csv",
                      .title = "Neurons_left out & 'quoted'",
                      .series = "order",
                      .curves = curves,
                      .curve_count = 2,
                      .panels = panels,
                      .panel_count = count};
}

static const esp_figure_panel two_panels[] = {{.x_label = "share q",
                                               .y_label = "accuracy",
                                               .x = "q",
                                               .y = "accuracy",
                                               .low = "deviation",
                                               .where = "layer",
                                               .is = "all",
                                               .levels = levels,
                                               .level_count = 1},
                                              {.title = "log",
                                               .x_label = "share q",
                                               .y_label = "accuracy",
                                               .x = "q",
                                               .y = "accuracy",
                                               .low = "deviation",
                                               .log_y = true}};

static void in_folder(char path[ESP_PATH_SIZE], const char *name) {
  assert_int_equal(esp_folder_path(path, folder, name), ESP_OK);
}

static int begin(void **state) {
  (void)state;
  static char made[TESTING_PATH_SIZE];
  make_folder(made);
  snprintf(folder, sizeof folder, "%.400s/it's a \"run\"", made);
  char path[ESP_PATH_SIZE];
  if (esp_folder_make(folder) != ESP_OK) return -1;
  in_folder(path, "table.csv");
  *state = made;
  return esp_file_write(path, table) == ESP_OK ? 0 : -1;
}

static int end(void **state) {
  remove_folder(*state);
  return 0;
}

static void read_text(const char *name, char *text, size_t room) {
  char path[ESP_PATH_SIZE];
  in_folder(path, name);
  FILE *file = fopen(path, "rb");
  if (!file) fail_msg("%s is missing", path);
  text[fread(text, 1, room - 1, file)] = '\0';
  fclose(file);
}

static bool draw(const esp_figure *figure, const char *name) {
  assert_int_equal(esp_figure_write(figure, folder, name), ESP_OK);
  const esp_drawing drawn = esp_figure_draw(folder, name);
  if (drawn == ESP_NO_GNUPLOT) return false;
  assert_int_equal(drawn, ESP_DRAWN);
  return true;
}

static void test_curves(void **state) {
  (void)state;
  static char svg[1 << 18];
  esp_figure figure = example(two_panels, 2);
  if (!draw(&figure, "curves")) skip();
  read_text("curves.svg", svg, sizeof svg);
  static const char *const texts[] = {"Neurons_left out &amp; 'quoted'", "the smallest's", "largest", "a guess",
                                      "share q"};
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
    if (!strstr(svg, texts[i])) fail_msg("the figure does not say \"%s\"", texts[i]);
  read_text("curves.png", svg, sizeof svg);
  assert_memory_equal(svg, "\x89PNG", 4);
}

static void test_every_spread(void **state) {
  (void)state;
  static const esp_figure_panel ranged[] = {
      {.x_label = "q", .y_label = "accuracy", .x = "q", .y = "accuracy", .low = "low", .high = "high"}};
  for (int i = 0; i < 12; i++) {
    esp_figure figure = example(i % 3 == ESP_SPREAD_RANGE ? ranged : two_panels, 1);
    figure.spread = (esp_figure_spread)(i % 3);
    figure.band = i / 3 % 2 && i % 3;
    figure.points = i / 6 != 0;
    figure.band_of = i % 2 ? "largest" : NULL;
    if (!draw(&figure, "spread")) skip();
  }
}

/* The rows of other layers would stretch the axis to 9. */
static void test_only_the_chosen_rows(void **state) {
  (void)state;
  static char svg[2][1 << 18];
  for (int i = 0; i < 2; i++) {
    esp_figure_panel panel = two_panels[0];
    panel.where = i ? NULL : "layer";
    esp_figure figure = example(&panel, 1);
    if (!draw(&figure, "chosen")) skip();
    read_text("chosen.svg", svg[i], sizeof svg[i]);
  }
  assert_null(strstr(svg[0], "> 10</tspan>"));
  assert_non_null(strstr(svg[1], "> 10</tspan>"));
}

static void test_what_cannot_be_drawn(void **state) {
  (void)state;
  esp_figure figure = example(&two_panels[1], 1);
  figure.csv = "elsewhere.csv";
  assert_int_equal(esp_figure_write(&figure, folder, "missing"), ESP_OK);
  const esp_drawing drawn = esp_figure_draw(folder, "missing");
  assert_true(drawn == ESP_GNUPLOT_FAILED || drawn == ESP_NO_GNUPLOT);
  char *path = strdup(getenv("PATH"));
  setenv("PATH", folder, 1);
  assert_int_equal(esp_figure_draw(folder, "missing"), ESP_NO_GNUPLOT);
  setenv("PATH", path, 1);
  free(path);
  assert_int_equal(esp_figure_write(&figure, "no/such/folder", "missing"), ESP_ERR_IO);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_curves), cmocka_unit_test(test_every_spread),
                                     cmocka_unit_test(test_only_the_chosen_rows),
                                     cmocka_unit_test(test_what_cannot_be_drawn)};
  return cmocka_run_group_tests(tests, begin, end);
}
