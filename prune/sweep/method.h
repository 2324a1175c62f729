/* Methods: whatever makes a smaller or cheaper model of a trained one, behind one interface, so that all of them can be
 * set side by side (sweep.h). Every criterion of criteria.h is a method by itself; a new method of another kind is one
 * function and one row of the table in method.c. */
#ifndef ESPALIER_METHOD_H
#define ESPALIER_METHOD_H

#include <espalier/criteria.h>
#include <espalier/merge.h>
#include <espalier/trained.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum esp_method_kind {
  ESP_METHOD_NONE,   /* the model as it is: the baseline */
  ESP_METHOD_PRUNE,  /* experts go */
  ESP_METHOD_MERGE,  /* experts share weights */
  ESP_METHOD_FACTOR, /* weights become products and sums of smaller ones */
  ESP_METHOD_SKIP    /* experts are left out at inference where a token hardly wants them */
} esp_method_kind;

/* What a method may look at. */
typedef struct esp_method_inputs {
  const esp_model *model;
  const esp_checkpoint_info *info;           /* of the model */
  const esp_model *reference;                /* the model from before finetuning; NULL: none */
  const esp_checkpoint_info *reference_info; /* NULL with it */
  const esp_calibration *calibration;        /* images to look at; NULL: none */
  const esp_expert_scores *scores; /* of these images; NULL: methods that want them make a pass of their own */
  uint64_t seed;                   /* of what is random in the method itself */
  const esp_prune_mode *mode;      /* in which criteria prune; NULL: each in its own (esp_criterion_mode()) */
  esp_gate_form gates;             /* what criteria take for gates; `scores` are of these */
  double ratio;                    /* the share of each layer's experts (or of their weights) that is to go */
} esp_method_inputs;

/* What a method made. */
typedef struct esp_compressed {
  esp_model *model; /* a new one, freed by esp_model_free() */
  int greedy;       /* layers whose experts were chosen one by one, by reconstruction with too many subsets */
  char *plan;       /* how it was made, as JSON from esp_alloc(); NULL if there is nothing to tell */
} esp_compressed;

typedef struct esp_method esp_method;

struct esp_method {
  const char *name, *summary;
  esp_method_kind kind;
  bool needs_reference, needs_data;
  bool has_ratio; /* false: there is nothing to set */
  /* Makes the model; inputs are left as they are. On failure nothing of *made needs freeing. */
  esp_status (*make)(const esp_method *method, const esp_method_inputs *inputs, esp_compressed *made);
  const esp_criterion *criterion; /* of a method that is a criterion; NULL otherwise */
  const esp_merge_method *merge;  /* of a method that merges; NULL otherwise */
  bool then_skip; /* "NAME+skip": what it made gets dynamic skipping (skip.h), calibrated on what it made */
};

/* The rows of the table, the model as it is first. */
ESP_API size_t esp_method_count(void);
ESP_API void esp_method_at(esp_method *method, size_t index);

/* Finds a method by its name, which must outlive it, or by "NAME+skip"; variants of the family S(b,alpha,beta) too,
 * though the table has those with a name only. ESP_ERR_USAGE if there is none of that name; the message names the
 * nearest. */
ESP_API esp_status esp_method_find(esp_method *method, const char *name) ESP_MUST_CHECK;

/* Runs a method, after checking that what it needs is there (ESP_ERR_USAGE). On failure *made is empty. */
ESP_API esp_status esp_method_make(const esp_method *method, const esp_method_inputs *inputs,
                                   esp_compressed *made) ESP_MUST_CHECK;
ESP_API void esp_compressed_clear(esp_compressed *made);

/* The method called `name` on a whole trained model, which is left as it is: inputs->model and inputs->info are taken
 * from it. The history of what is made gets an entry for people, "man, ratio 0.5, calibrated on 256 images of
 * synthetic". Fails as the functions above; on failure *made is empty, otherwise it is freed by esp_trained_clear(). */
ESP_API esp_status esp_method_apply(const char *name, const esp_trained *trained, const esp_method_inputs *inputs,
                                    esp_trained *made) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
