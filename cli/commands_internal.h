/* What the commands share. */
#ifndef ESPALIER_COMMANDS_INTERNAL_H
#define ESPALIER_COMMANDS_INTERNAL_H

#include "arguments_internal.h"

#include <espalier/calibration.h>
#include <espalier/evaluate.h>
#include <espalier/expert_scores.h>
#include <espalier/folder_lock.h>
#include <espalier/json_file.h>
#include <espalier/neurons.h>
#include <espalier/plan.h>
#include <espalier/run_folder.h>
#include <espalier/trained.h>

#include <jansson.h>
#include <signal.h>

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

/* One a file of cli/commands/; main.c has the list. */
extern const command pretrain_command, finetune_command, evaluate_command, measure_command, compare_command,
    prune_command, overlap_command, skip_command, sweep_command, merge_command, compress_command, upcycle_command,
    inspect_command, data_command, bench_command;

/* measure --sparsify. */
int run_sparsify(const arguments *a);

/* --out of `measure`, or RUN/measured if a run is measured, made; "" for a lone checkpoint. */
esp_status choose_measure_folder(char folder[ESP_PATH_SIZE], const arguments *a);

/* Prints this thread's message to standard error and returns the exit code that fits the status. */
int report_failure(esp_status status);

/* Prints the object as the command's one JSON object; takes it over. Returns EXIT_DONE. */
int print_json(json_t *object);

/* Refuses a command line without --data. */
esp_status need_data(const arguments *a);

/* Opens --data, which must be there, with the usual share held out for validation. */
esp_status open_data(esp_dataset **dataset, const arguments *a);

/* The share of the training images that the training of the model held out, as far as it is known, or --validation. */
esp_status validation_share(const esp_trained *l, const arguments *a, double *share);

/* Opens data for a trained model, with the same share held out as in its training, or as --validation says. */
esp_status open_data_of(esp_dataset **dataset, const char *data, const esp_trained *l, const arguments *a);

/* ESP_ERR_USAGE if one of the sets before has the same images. */
esp_status refuse_same_data(const char *option, const esp_dataset *const *before, int count,
                            const esp_dataset *dataset);

/* Opens calibration data of the model's image shape, and reads --calibration and --seed. */
esp_status open_calibration(esp_calibration *calibration, esp_dataset **dataset, const char *data, const esp_trained *l,
                            const arguments *a);

/* Opens --data, which must suit the model, and reads which part of it to look at: --split and --limit. */
esp_status open_part(const esp_trained *l, const arguments *a, esp_dataset **dataset, esp_evaluation_options *options);

/* --gates. */
esp_status parse_gates(const arguments *a, esp_gate_form *gates);

/* --split; the test split if it is not there. */
esp_status parse_split(const arguments *a, esp_split_name *split);

/* Whether both are there and are the same file. */
bool is_same_file(const char *path, const char *other);

/* Refuses a target that is the file of an input. */
esp_status check_not_input(const char *target, const char *input);

/* Says on standard error if the folder cannot be locked. */
void tell_lock(const esp_folder_lock *lock);

/* Makes the folder and takes it for this process as long as it lives: ESP_ERR_BUSY if another one writes there. */
esp_status take_folder(const char *folder, const char *purpose);

/* --out of a command that makes one checkpoint: a file that ends in .h5, or last.h5 in a folder. What is there is
 * replaced with --overwrite only. */
esp_status choose_checkpoint(char target[ESP_PATH_SIZE], const arguments *a);

/* Writes plan.json beside the checkpoint `target`, if --out is a folder. */
esp_status write_plan(const esp_plan *plan, const char *target, const arguments *a);

/* inspect_layers.c: what became of the experts, added to the blocks' objects and printed. */
void put_experts_json(json_t *layers, const esp_model *model);
void print_experts(const esp_model *model);

/* Has gnuplot draw folder/name.svg and .png by the script that is there; says on standard error if it cannot. */
void draw_figure(const arguments *a, const char *folder, const char *name);

/* prune: arguments of a criterion for neurons, what its budget is called, and what a plan says of a layer's neurons. */
esp_status read_neuron_pruning(const esp_neuron_criterion **criterion, esp_neuron_budget *budget, const arguments *a);
void describe_neurons(const esp_neuron_budget *budget, char *text, size_t size);
void print_neurons(const esp_layer_plan *layer);
json_t *neurons_left_json(const esp_layer_plan *layer);

/* The history as JSON and as lines on standard output. */
json_t *history_json(const esp_checkpoint_info *info);
void print_history(const esp_checkpoint_info *info);

/* Whether there is a folder of this name. */
bool is_folder(const char *path);

/* Bytes of a file; 0 if it cannot be read. */
long long file_size(const char *path);

enum { MOST_THREADS = 1024 };

/* First of all: may begin the program anew, with the same arguments. */
void prepare_process(char **argv);

/* After esp_threads_set(): ESP_ERR_USAGE if the environment asks for more threads than make sense. */
esp_status check_threads(void);

/* Ctrl-C, SIGTERM and a closed terminal set this; the training loop ends at the next safe point. */
const volatile sig_atomic_t *watch_interrupts(void);

#endif
