/* Feed-forward networks of one layer, side by side: the experts of a mixture, or the one of a dense layer. */
#ifndef ESPALIER_EXPERT_BANK_H
#define ESPALIER_EXPERT_BANK_H

#include <espalier/moe_ops.h>
#include <espalier/norm.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Expert e computes  down_e^T act(up_e x)  with two matrices, or  down_e^T (act(gate_e x) * (up_e x))  with three.
 * A neuron is one row of each of its matrices, so a neuron's weights lie together:
 *   up    [experts, f, width], with a gate [experts, 2 f, width] (the rows of gate, then those of up)
 *   down  [experts, f, width]
 * A dense layer's have no first dimension. Experts of different widths lie one after another in the same way, and the
 * bank is one matrix of all their neurons (n = the sum of the widths):
 *   up    [n, width], with a gate [2 n, width] (of each expert the rows of gate, then those of up)
 *   down  [n, width] */
typedef struct esp_expert_bank {
  esp_activation_kind activation;
  esp_neuron_ranking ranking; /* of neurons, where some are selected */
  int experts, width, hidden; /* hidden: neurons of an expert, of the widest one if they differ */
  const int32_t *widths;      /* [experts] their neurons if they differ, else NULL; the layer's layout owns them */
  esp_tensor *up, *up_bias, *down, *down_bias; /* the biases are NULL unless asked for */
  int rank;                                    /* > 0: the matrices are factored: up and down are NULL */
  esp_factors factors[ESP_SIDES];              /* then they are here: gate | up, and down transposed to [width, f] */
} esp_expert_bank;

/* The weights of one expert, in place; of a factored bank all three matrices are NULL: esp_expert_matrix_read()
 * (factors.h) reads those. */
ESP_API esp_expert_weights esp_expert_weights_of(const esp_expert_bank *bank, int expert);

/* Neurons of an expert. */
ESP_API int esp_expert_width(const esp_expert_bank *bank, int expert);

/* What happened inside, for observers; rows as the bank was given them. Where experts differ in width, f is that of the
 * widest, and the columns of the others beyond their own width are 0. */
typedef struct esp_bank_trace {
  esp_tensor *pre;        /* [rows, f or 2 f] before the activation */
  esp_tensor *activation; /* [rows, f] after it, before any neuron selection */
  esp_tensor *selected;   /* [rows, f] after the selection; the same as `activation` without one */
  esp_tensor *output;     /* [rows, width] */
  const uint8_t *mask;    /* [rows, f] 1 where a neuron is selected; NULL without a selection: all are */
} esp_bank_trace;

/* Someone who intervenes between the neurons and the down matrices, to study a trained model: for evaluation passes
 * only, because no gradient knows of it. */
typedef struct esp_neuron_filter {
  /* trace: `pre` and `activation` are there to look at; `selected`, a copy of its own, is to be changed in place. */
  void (*rows)(void *context, const esp_expert_bank *bank, const int64_t *first_row, const esp_bank_trace *trace);
  void *context;
  int block; /* the only block it is for; -1: all mixture layers */
} esp_neuron_filter;

typedef struct esp_expert_bank_options {
  int experts;                           /* 0: a dense layer's one, whose tensors have no first dimension */
  int width, hidden;                     /* hidden: neurons of an expert, of the widest one if they differ */
  const int32_t *widths;                 /* [experts] neurons of each if they differ, to outlive the bank; else NULL */
  const esp_expert_layout *factored;     /* whose experts are factored (factors.h), to outlive the bank; else NULL */
  const esp_feed_forward_config *config; /* of it the activation and whether there are biases */
  double residual_scale;                 /* multiplies the initial deviation of `down`; factored matrices start at 0 */
  bool identical;                        /* all experts start alike, which those of different widths cannot */
} esp_expert_bank_options;

/* Declares "scope.gate_up" or "scope.up", "scope.down" and their biases. */
ESP_API esp_status esp_expert_bank_declare(esp_expert_bank *bank, esp_parameters *parameters, const char *scope,
                                           const esp_expert_bank_options *options) ESP_MUST_CHECK;

/* How the bank picks `kept` neurons for a row; the rows of expert e are first_row[e] .. first_row[e + 1] - 1. */
ESP_API esp_neuron_selection esp_expert_bank_selection(const esp_expert_bank *bank, const int64_t *first_row,
                                                       int64_t kept);

/* What happens between the matrices of an expert. */
typedef struct esp_neuron_options {
  int64_t kept;                    /* neurons that stay of each row; the bank's `hidden`: all, there is no selection */
  const esp_neuron_filter *filter; /* has its say after the selection; NULL: none */
} esp_neuron_options;

/* x [rows, width], sorted by expert: those of expert e are rows first_row[e] .. first_row[e + 1] - 1. With `neurons`
 * NULL all stay and there is no filter. Returns [rows, width]; fills *trace if it is not NULL. */
ESP_API esp_tensor *esp_expert_bank_forward(const esp_expert_bank *bank, esp_tape *tape, esp_tensor *x,
                                            const int64_t *first_row, const esp_neuron_options *neurons,
                                            esp_bank_trace *trace);

/* How a bank that keeps a part of its neurons computes where no gradient is needed. */
typedef enum esp_neuron_path {
  ESP_NEURONS_BY_RULE, /* the faster way, by esp_gathering_pays() */
  ESP_NEURONS_MASKED,  /* all neurons are computed and the unselected ones zeroed, as in training: the reference */
  ESP_NEURONS_GATHERED /* the unselected ones' rows of up and down are not touched */
} esp_neuron_path;

/* Whether gathering `kept` of `neurons` neurons is expected to be faster than masking them, with so many rows for each
 * expert that has any. A share of 1/8 or less is gathered always, of 1/4 from width 256 on or for one row, of 1/2 for
 * few rows: 8 from width 512 on, 2 from 256, 1 from 128. Found with `espalier bench gather --threads 1` for widths from
 * 64 to
 * 1024, 1 to 128 rows, and OpenBLAS's AVX2 and AVX-512 kernels, and chosen to err towards masking. With two matrices
 * only down is skipped, which was not measured: one row and 1/4 are asked for. */
ESP_API bool esp_gathering_pays(double rows, int64_t neurons, int64_t width, int64_t kept, bool gated);

/* Whether the bank takes the gathered path: if it keeps a part of its neurons and is not factored, the tape does not
 * record, and `path` says so. */
ESP_API bool esp_expert_bank_gathers(const esp_expert_bank *bank, const esp_tape *tape, const int64_t *first_row,
                                     int64_t kept, esp_neuron_path path);

/* The same as esp_expert_bank_forward() for a pass that nobody watches: the selected neurons are gathered. */
ESP_API esp_tensor *esp_expert_bank_gather(const esp_expert_bank *bank, esp_tape *tape, esp_tensor *x,
                                           const int64_t *first_row, int64_t kept);

/* The same for a bank of one expert, which takes all rows and keeps all its neurons: a dense layer, a shared expert.
 * x [.., width] -> [.., width]. */
ESP_API esp_tensor *esp_expert_bank_forward_all(const esp_expert_bank *bank, esp_tape *tape, esp_tensor *x);

/* esp_tape_release() for all four (NULL is allowed), once observers have seen them. */
ESP_API void esp_bank_trace_release(esp_tape *tape, esp_bank_trace *trace);

#ifdef __cplusplus
}
#endif
#endif
