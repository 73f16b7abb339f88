/* tuco: the Tuning Contribution of a fine-tuned language model.
 *
 * Link with libtuco_c (cargo build --release -p tuco-capi). examples/c/score.c is a whole program.
 *
 * Functions return a status: 0, or what the program `tuco` exits with. tuco_last_error tells what is wrong, in its words. Text is
 * UTF-8. A session may be used by several threads: their calls take turns. It does not survive a fork.
 */
#ifndef TUCO_H
#define TUCO_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TUCO_API extern

typedef enum tuco_status {
    TUCO_OK = 0,
    /* Reading or the device failed, which may be otherwise later; or a defect of tuco. */
    TUCO_FAILED = 1,
    /* An option, path, prompt or argument that cannot be meant. */
    TUCO_USAGE = 2,
    /* A broken checkpoint, two that are not a pair, or weights that overflow on a prompt: do not retry. */
    TUCO_WRONG_PAIR = 42,
    /* tuco_cancel stopped it. */
    TUCO_CANCELLED = 75,
} tuco_status;

/* A pair that is open and ready. */
typedef struct tuco_session tuco_session;

/* A flag of `tuco score` about pair, prompts or machine, without its dashes: "base", "tuned", "adapter", "device", "threads", …
 * Flags without a value take "true" or "false". */
typedef struct tuco_option {
    const char *name;
    const char *value;
} tuco_option;

/* The fields of `tuco score`. */
typedef struct tuco_score {
    double tuco;
    double ptc_l1;
    double ftc_l1;
    double beta;
    size_t n_tokens;
    /* 1 where the option "on-overlength" had the prompt cut, else 0. */
    int truncated;
} tuco_score;

/* Opens a pair. *session is NULL where that fails. */
TUCO_API int tuco_open(const tuco_option *options, size_t count, tuco_session **session);

/* Scores `count` prompts of text, each ending with a 0. Either all are scored or none. */
TUCO_API int tuco_score_text(const tuco_session *session, const char *const *prompts, size_t count, tuco_score *scores);

/* Scores `count` prompts of token ids, which follow each other in `token_ids`; `lengths` has the number of each one's. */
TUCO_API int tuco_score_tokens(const tuco_session *session, const uint32_t *token_ids, const size_t *lengths, size_t count, tuco_score *scores);

/* Stops the scoring that other threads have begun, what waits for its turn too: it returns TUCO_CANCELLED. Later calls are not stopped.
 * NULL is allowed. */
TUCO_API void tuco_cancel(const tuco_session *session);

/* What there is to tell of the pair and its prompts since the last call (differences within the pair, a doubled first token, a device
 * that batches did not fit), a line each; "" if there is nothing, and for NULL. Valid until this thread's next call of it. */
TUCO_API const char *tuco_take_warnings(const tuco_session *session);

/* Gives back memory, threads and device. NULL is allowed. */
TUCO_API void tuco_close(tuco_session *session);

/* What went wrong in this thread's last call that failed; "" if none did. Valid until its next call. */
TUCO_API const char *tuco_last_error(void);

/* "0.1.0" */
TUCO_API const char *tuco_version(void);

#ifdef __cplusplus
}
#endif

#endif
