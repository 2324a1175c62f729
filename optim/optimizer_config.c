#include <espalier/optimizer_schema.h>

#include <math.h>

static const cyaml_strval_t optimizer_names[] = {
    {"sgd", ESP_OPTIMIZER_SGD}, {"adamw", ESP_OPTIMIZER_ADAMW}, {"muon", ESP_OPTIMIZER_MUON}};
static const cyaml_strval_t schedule_names[] = {
    {"constant", ESP_SCHEDULE_CONSTANT}, {"linear", ESP_SCHEDULE_LINEAR}, {"cosine", ESP_SCHEDULE_COSINE}};

static const cyaml_schema_field_t schedule_fields[] = {
    CYAML_FIELD_ENUM("kind", CYAML_FLAG_STRICT, esp_schedule_config, kind, schedule_names,
                     CYAML_ARRAY_LEN(schedule_names)),
    CYAML_FIELD_FLOAT("warmup", CYAML_FLAG_DEFAULT, esp_schedule_config, warmup),
    CYAML_FIELD_FLOAT("final_share", CYAML_FLAG_DEFAULT, esp_schedule_config, final_share), CYAML_FIELD_END};

const cyaml_schema_field_t esp_optimizer_fields[] = {
    CYAML_FIELD_ENUM("kind", CYAML_FLAG_STRICT, esp_optimizer_config, kind, optimizer_names,
                     CYAML_ARRAY_LEN(optimizer_names)),
    CYAML_FIELD_FLOAT("learning_rate", CYAML_FLAG_DEFAULT, esp_optimizer_config, learning_rate),
    CYAML_FIELD_FLOAT("router_rate", CYAML_FLAG_DEFAULT, esp_optimizer_config, router_rate),
    CYAML_FIELD_FLOAT("weight_decay", CYAML_FLAG_DEFAULT, esp_optimizer_config, weight_decay),
    CYAML_FIELD_FLOAT("router_decay", CYAML_FLAG_DEFAULT, esp_optimizer_config, router_decay),
    CYAML_FIELD_FLOAT("momentum", CYAML_FLAG_DEFAULT, esp_optimizer_config, momentum),
    CYAML_FIELD_FLOAT("beta1", CYAML_FLAG_DEFAULT, esp_optimizer_config, beta1),
    CYAML_FIELD_FLOAT("beta2", CYAML_FLAG_DEFAULT, esp_optimizer_config, beta2),
    CYAML_FIELD_FLOAT("epsilon", CYAML_FLAG_DEFAULT, esp_optimizer_config, epsilon),
    CYAML_FIELD_FLOAT("clip_norm", CYAML_FLAG_DEFAULT, esp_optimizer_config, clip_norm),
    CYAML_FIELD_MAPPING("schedule", CYAML_FLAG_DEFAULT, esp_optimizer_config, schedule, schedule_fields),
    CYAML_FIELD_END};

const esp_optimizer_config esp_optimizer_defaults = {.kind = ESP_OPTIMIZER_ADAMW,
                                                     .learning_rate = 1e-3,
                                                     .router_rate = 1,
                                                     .weight_decay = 0.05,
                                                     .momentum = 0.9,
                                                     .beta1 = 0.9,
                                                     .beta2 = 0.999,
                                                     .epsilon = 1e-8,
                                                     .clip_norm = 1,
                                                     .schedule = {.kind = ESP_SCHEDULE_COSINE, .warmup = 0.05}};

esp_status esp_optimizer_config_check(const esp_optimizer_config *c) {
  const struct {
    const char *key;
    double value, least, most;
    bool open; /* `most` itself is not allowed */
  } ranges[] = {{"learning_rate", c->learning_rate, 0, 1e3, false},
                {"router_rate", c->router_rate, 0, 1e3, false},
                {"weight_decay", c->weight_decay, 0, 1e3, false},
                {"router_decay", c->router_decay, 0, 1e3, false},
                {"momentum", c->momentum, 0, 1, true},
                {"beta1", c->beta1, 0, 1, true},
                {"beta2", c->beta2, 0, 1, true},
                {"epsilon", c->epsilon, 0, 1, false},
                {"clip_norm", c->clip_norm, 0, 1e9, false},
                {"schedule.warmup", c->schedule.warmup, 0, 1, false},
                {"schedule.final_share", c->schedule.final_share, 0, 1, false}};
  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    if (!(ranges[i].value >= ranges[i].least) || ranges[i].value > ranges[i].most ||
        (ranges[i].open && ranges[i].value >= ranges[i].most))
      return esp_fail(ESP_ERR_CONFIG, "optimizer.%s is %g; it must lie in [%g, %g%c", ranges[i].key, ranges[i].value,
                      ranges[i].least, ranges[i].most, ranges[i].open ? ')' : ']');
  return ESP_OK;
}

double esp_schedule_multiplier(const esp_schedule_config *schedule, int64_t step, int64_t steps) {
  const double warmup = schedule->warmup * (double)steps, done = (double)step + 1;
  if (done <= warmup) return done / warmup;
  const double rest = (double)steps - warmup;
  double progress = rest > 0 ? ((double)step - warmup) / rest : 1;
  progress = progress < 0 ? 0 : progress > 1 ? 1 : progress;
  switch (schedule->kind) {
  case ESP_SCHEDULE_CONSTANT:
    return 1;
  case ESP_SCHEDULE_LINEAR:
    return 1 - (1 - schedule->final_share) * progress;
  case ESP_SCHEDULE_COSINE:
    break;
  }
  return schedule->final_share + (1 - schedule->final_share) * 0.5 * (1 + cos(3.14159265358979323846 * progress));
}
