/* One writer a folder. The lock is an open file description's (fcntl, F_OFD_SETLK) on FOLDER/.espalier.lock: it ends
 * with the process, however that ends, and holds between machines on NFS as far as that is mounted with locks. */
#ifndef ESPALIER_FOLDER_LOCK_H
#define ESPALIER_FOLDER_LOCK_H

#include <espalier/status.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ESP_LOCK_NAME ".espalier.lock"

typedef struct esp_folder_lock esp_folder_lock;

/* Locks the folder, which must be there, for who writes into it, and removes what writers that died left half-written.
 * ESP_ERR_BUSY if another one holds it, also in this process; the message says which process on which machine, since
 * when, and `purpose` as it gave it ("pretrain"). */
ESP_API esp_status esp_folder_lock_take(esp_folder_lock **lock, const char *folder, const char *purpose) ESP_MUST_CHECK;

/* Why the folder is not locked although it was taken: its file system has no locks. "" if it is. */
ESP_API const char *esp_folder_lock_note(const esp_folder_lock *lock);

ESP_API void esp_folder_lock_free(esp_folder_lock *lock);

#ifdef __cplusplus
}
#endif
#endif
