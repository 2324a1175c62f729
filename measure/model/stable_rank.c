#include <espalier/factors.h>
#include <espalier/lapack.h>
#include <espalier/memory.h>
#include <espalier/stable_rank.h>

static int64_t count_matrices(const esp_model *model) {
  int64_t count = 0;
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_expert_bank *bank = &esp_model_moe(model, i)->bank;
    count += (int64_t)bank->experts * esp_expert_matrix_count(bank);
  }
  return count;
}

static esp_status rank_matrix(esp_matrix_rank *r, const esp_moe *moe, int expert, int index) {
  const esp_expert_matrix m = esp_expert_matrix_at(&moe->bank, expert, index);
  esp_svd svd;
  ESP_TRY(esp_svd_create(&svd, m.out, m.in));
  esp_expert_matrix_read(&moe->bank, expert, &m, svd.matrix);
  esp_status status = esp_svd_run(&svd);
  if (status != ESP_OK) status = esp_fail_in(status, "%s, expert %d, %s", moe->scope, expert, m.name);
  *r = (esp_matrix_rank){.layer = moe->scope,
                         .expert = expert,
                         .matrix = m.name,
                         .out = m.out,
                         .in = m.in,
                         .rank = moe->bank.rank,
                         .sparse_rows = esp_expert_matrix_sparse_rows(&moe->bank, expert, &m),
                         .stable_rank = status == ESP_OK ? esp_stable_rank(svd.sigma, svd.n) : 0};
  esp_svd_free(&svd);
  return status;
}

static esp_status rank_all(esp_stable_ranks *ranks, const esp_model *model) {
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    for (int e = 0; e < moe->bank.experts; e++)
      for (int m = 0; m < esp_expert_matrix_count(&moe->bank); m++)
        ESP_TRY(rank_matrix(&ranks->of[ranks->count++], moe, e, m));
  }
  return ESP_OK;
}

esp_status esp_stable_ranks_create(esp_stable_ranks **ranks, const esp_model *model) {
  *ranks = NULL;
  esp_stable_ranks *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  made->of = esp_alloc((size_t)count_matrices(model) + 1, sizeof *made->of);
  const esp_status status = made->of ? rank_all(made, model) : ESP_ERR_MEMORY;
  if (status == ESP_OK) *ranks = made;
  else esp_stable_ranks_free(made);
  return status;
}

void esp_stable_ranks_free(esp_stable_ranks *ranks) {
  if (!ranks) return;
  esp_free(ranks->of);
  esp_free(ranks);
}
