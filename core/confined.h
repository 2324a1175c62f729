/* Work on what strangers made, in a copy of this process (fork) with limits: whatever that work does to its process,
 * this one only learns that it failed. For libraries that were not made for hostile input. */
#ifndef ESPALIER_CONFINED_H
#define ESPALIER_CONFINED_H

#include <espalier/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Runs in the copy, on one thread, without standard input and output and without writing files. What it gives back goes
 * through esp_confined_send(); the message of a failure arrives by itself. */
typedef esp_status esp_confined_work(void *context, int to);

typedef struct esp_confined_limits {
  uint64_t bytes;       /* of memory beyond what this process has */
  int seconds;          /* of computing */
  const char *for_whom; /* "HDF5": for messages */
} esp_confined_limits;

/* What the work may use for a file of so many bytes: memory for some copies of all that deflate can have packed into
 * it, and time to unpack that. */
ESP_API esp_confined_limits esp_confined_limits_of(uint64_t file_bytes, const char *for_whom);

/* A copy at work. */
typedef struct esp_confined {
  long process;
  int results, verdict; /* pipes, this end */
  int seconds;
  const char *for_whom;
} esp_confined;

/* ESP_ERR_MEMORY if there can be no copy. */
ESP_API esp_status esp_confined_start(esp_confined *copy, esp_confined_work *work, void *context,
                                      const esp_confined_limits *limits) ESP_MUST_CHECK;

/* Sends, from the copy, `size` bytes to esp_confined_receive(). */
ESP_API esp_status esp_confined_send(int to, const void *bytes, size_t size) ESP_MUST_CHECK;

/* Lets the copy, from inside, take more, as for a further file of so many bytes. */
ESP_API void esp_confined_extend(uint64_t file_bytes);

/* Here: false if the copy ends, or is ended because it takes too long, before it has sent so much; esp_confined_end()
 * then says why. */
ESP_API bool esp_confined_receive(esp_confined *copy, void *bytes, size_t size) ESP_MUST_CHECK;

/* Waits until the copy has ended, and gives back what its work did; ESP_ERR_FORMAT if the work ended its process or
 * went beyond the limits. */
ESP_API esp_status esp_confined_end(esp_confined *copy) ESP_MUST_CHECK;

/* Start and end, of work that sends nothing. */
ESP_API esp_status esp_confined_try(esp_confined_work *work, void *context,
                                    const esp_confined_limits *limits) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
