/* The table of criteria, and the way from one of them to a plan. */
#include "criteria_internal.h"

#include <stdio.h>
#include <string.h>

static const char unified[] = "Liu et al., arXiv 2606.15716";
static const char lu[] = "Lu et al., ACL 2024, arXiv 2402.14800";

#define FAMILY(name, formula, source, b, alpha, beta)                                                                 \
  {                                                                                                                   \
    name, formula, source, false, true, ESP_PRUNE_REMOVE, esp_score_family, NULL, b, alpha, beta, (alpha) > 0, false, \
        false                                                                                                         \
  }
#define BY_PASS(name, formula, source, score, gates) \
  { name, formula, source, false, true, ESP_PRUNE_REMOVE, score, NULL, 0, 0, 0, gates, false, false }
#define BY_REFERENCE(name, formula, source, score) \
  { name, formula, source, true, false, ESP_PRUNE_ZERO, score, NULL, 0, 0, 0, false, false, false }
#define BY_CHOICE(name, formula, source, choose) \
  { name, formula, source, false, true, ESP_PRUNE_REMOVE, NULL, choose, 0, 0, 0, false, true, false }
#define WITHOUT(name, formula, source, seed, mode, score) \
  { name, formula, source, false, false, mode, score, NULL, 0, 0, 0, false, false, seed }

/* n = norm of the expert's output f before the gate, g = the gate, N = tokens routed to the expert; sums over these. */
static const esp_criterion named[] = {
    BY_REFERENCE("router-norm-change", "|w_T| - |w_0|: signed change of the router row's L2 norm since the reference",
                 "Chowdhury et al., ICML 2024, arXiv 2405.16646", esp_score_signed_change),
    BY_REFERENCE("router-norm-change-absolute", "||w_T| - |w_0||: its absolute value", "ablation of the same",
                 esp_score_absolute_change),
    BY_REFERENCE("router-difference-norm", "|w_T - w_0|: norm of the difference", "ablation of the same",
                 esp_score_difference_norm),
    WITHOUT("random", "a uniform number, keyed by the seed and the layer", "the baseline every criterion has to beat",
            true, ESP_PRUNE_ZERO, esp_score_random),
    FAMILY("frequency", "S(0,0,0) = N", unified, 0, 0, 0),
    FAMILY("seer", "S(0,1,0) = sum g", "SEER-MoE, arXiv 2404.05089", 0, 1, 0),
    FAMILY("ean", "S(0,0,1) = sum n", "expert activation norm", 0, 0, 1),
    FAMILY("reap", "S(1,1,1) = (1/N) sum g n", "REAP, arXiv 2510.13999", 1, 1, 1),
    FAMILY("man", "S(1,0,1) = (1/N) sum n", unified, 1, 0, 1),
    FAMILY("msan", "S(1,0,2) = (1/N) sum n^2", unified, 1, 0, 2),
    FAMILY("gate-weighted-ean", "S(0,1,1) = sum g n", unified, 0, 1, 1),
    FAMILY("squared-gate-energy", "S(0,2,2) = sum g^2 n^2", unified, 0, 2, 2),
    BY_PASS("novice-mone", "(mean g) x norm of the standard deviations of f's entries",
            "Mixture-of-Novices-and-Experts, arXiv 2507.00390", esp_score_novice, true),
    BY_PASS("max-activation", "the largest single entry of f", "as in REAP's code", esp_score_max_activation, false),
    BY_PASS("importance", "(share of tokens whose first choice it is) x exp(mean score of these choices)",
            "NLLB, arXiv 2207.04672", esp_score_importance, false),
    BY_PASS("damage", "sum over tokens routed to it of |y - y without it|, the next choice taking its place", unified,
            esp_score_damage, false),
    BY_CHOICE("reconstruction", "the subset without which |Z - Z'| is least, each layer by itself", lu,
              esp_choose_by_layer),
    BY_CHOICE("reconstruction-progressive", "the same, on what comes of the layers pruned before", lu,
              esp_choose_progressively),
    BY_CHOICE("reconstruction-greedy", "the same, expert by expert: for many experts", "extension of the same",
              esp_choose_greedily),
    WITHOUT("weight-norm", "L2 norm of all weights of the expert", "data-free baseline", false, ESP_PRUNE_REMOVE,
            esp_score_weight_norm),
    WITHOUT("aimer", "mean magnitude of the expert's weights over their root mean square", "AIMER, arXiv 2603.18492",
            false, ESP_PRUNE_REMOVE, esp_score_aimer),
};
enum { NAMED = sizeof named / sizeof named[0] };

#define VARIANT(b, alpha, beta) \
  FAMILY("S(" #b "," #alpha "," #beta ")", "(1/N^" #b ") sum g^" #alpha " n^" #beta, unified, b, alpha, beta)

static const esp_criterion family[] = {
    VARIANT(0, 0, 0), VARIANT(0, 0, 1), VARIANT(0, 0, 2), VARIANT(0, 1, 0), VARIANT(0, 1, 1), VARIANT(0, 1, 2),
    VARIANT(0, 2, 0), VARIANT(0, 2, 1), VARIANT(0, 2, 2), VARIANT(1, 0, 1), VARIANT(1, 0, 2), VARIANT(1, 1, 0),
    VARIANT(1, 1, 1), VARIANT(1, 1, 2), VARIANT(1, 2, 0), VARIANT(1, 2, 1), VARIANT(1, 2, 2),
};
enum { VARIANTS = sizeof family / sizeof family[0] };

size_t esp_criterion_list(const esp_criterion **criteria) {
  *criteria = named;
  return NAMED;
}

size_t esp_criterion_family(const esp_criterion **criteria) {
  *criteria = family;
  return VARIANTS;
}

/* --- by name ------------------------------------------------------------------------------------------------- */

static esp_status find_variant(const esp_criterion **criterion, const char *name, int b, int alpha, int beta) {
  for (size_t i = 0; i < VARIANTS; i++)
    if (family[i].b == b && family[i].alpha == alpha && family[i].beta == beta) {
      *criterion = &family[i];
      return ESP_OK;
    }
  if (b == 1 && alpha == 0 && beta == 0)
    return esp_fail(ESP_ERR_USAGE,
                    "%s is N / N = 1 for every expert and so ranks none; leave out the mean "
                    "(S(0,0,0), frequency) or raise an exponent (S(1,0,1), man)",
                    name);
  return esp_fail(ESP_ERR_USAGE, "there is no criterion \"%s\": S(b,alpha,beta) has b 0 or 1, alpha and beta 0, 1 or 2",
                  name);
}

/* "S(b,alpha,beta)" or "family:b,alpha,beta". */
static bool is_variant(const char *name, int *b, int *alpha, int *beta) {
  char bracket = 0, rest = 0;
  if (sscanf(name, "family:%d,%d,%d%c", b, alpha, beta, &rest) == 3) return true;
  return sscanf(name, "S(%d,%d,%d%c%c", b, alpha, beta, &bracket, &rest) == 4 && bracket == ')';
}

esp_status esp_criterion_find(const esp_criterion **criterion, const char *name) {
  const char *names[NAMED];
  int b, alpha, beta, index;
  if (is_variant(name, &b, &alpha, &beta)) return find_variant(criterion, name, b, alpha, beta);
  for (size_t i = 0; i < NAMED; i++) names[i] = named[i].name;
  ESP_TRY(esp_find_name(&index, "criterion", name, names, NAMED));
  *criterion = &named[index];
  return ESP_OK;
}

/* --- to a plan ----------------------------------------------------------------------------------------------- */

esp_prune_mode esp_criterion_mode(const esp_criterion *criterion, const esp_model *model) {
  const esp_router_kind policy = model->config.moe.router.policy;
  const bool experts_choose = policy == ESP_ROUTER_EXPERT_CHOICE || policy == ESP_ROUTER_SOFT;
  return experts_choose ? ESP_PRUNE_REMOVE : criterion->mode;
}

static esp_status check_inputs(const esp_criterion *c, const esp_criterion_inputs *inputs,
                               const esp_prune_budget *budget) {
  if (c->needs_reference && (!inputs->reference || !inputs->reference_info))
    return esp_fail(ESP_ERR_USAGE, "%s compares with the model from before finetuning, and no reference was given",
                    c->name);
  if (c->needs_data && !inputs->calibration)
    return esp_fail(ESP_ERR_USAGE, "%s looks at what experts do with data, and no calibration data were given",
                    c->name);
  if (c->choose && budget->global)
    return esp_fail(ESP_ERR_USAGE,
                    "%s chooses experts layer by layer and gives no scores that layers could be compared "
                    "by; use a budget per layer",
                    c->name);
  return inputs->calibration ? esp_calibration_check(inputs->calibration, &inputs->model->config) : ESP_OK;
}

static esp_status fill(const esp_criterion *c, const esp_criterion_inputs *inputs, esp_plan *plan,
                       const esp_prune_budget *budget) {
  int drops[ESP_MAX_BLOCKS];
  if (!budget->global) ESP_TRY(esp_plan_counts(plan, inputs->model, budget, drops)); /* before the long part */
  if (c->choose) return c->choose(c, inputs, plan, drops);
  ESP_TRY(c->score(c, inputs, plan));
  return esp_plan_drop_lowest(plan, inputs->model, budget);
}

void esp_plan_note_data(esp_plan *plan, const esp_calibration *calibration) {
  const esp_dataset_info *info = esp_dataset_info_of(calibration->dataset);
  snprintf(plan->data.name, sizeof plan->data.name, "%s", info->name);
  snprintf(plan->data.digest, sizeof plan->data.digest, "%s", info->digest);
  snprintf(plan->data.split, sizeof plan->data.split, "%s", esp_split_text(calibration->split));
  plan->data.images = esp_calibration_images(calibration);
  plan->data.seed = calibration->seed;
}

void esp_plan_note_origin(esp_plan *plan, const char *formula, bool needs_data, const esp_criterion_inputs *inputs) {
  snprintf(plan->formula, sizeof plan->formula, "%s", formula);
  plan->seed = inputs->seed;
  if (needs_data) esp_plan_note_data(plan, inputs->calibration);
}

esp_status esp_plan_make(esp_plan **plan, const esp_criterion *criterion, const esp_criterion_inputs *inputs,
                         esp_prune_mode mode, const esp_prune_budget *budget) {
  *plan = NULL;
  ESP_TRY(check_inputs(criterion, inputs, budget));
  ESP_TRY(esp_plan_create(plan, inputs->model, criterion->name, mode));
  esp_plan_note_origin(*plan, criterion->formula, criterion->needs_data, inputs);
  const esp_status status = fill(criterion, inputs, *plan, budget);
  if (status == ESP_OK) return ESP_OK;
  esp_plan_free(*plan);
  *plan = NULL;
  return status;
}
