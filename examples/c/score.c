/* Scores the prompts of its arguments:
 *
 *     cargo build --release -p tuco-capi
 *     cc -Iinclude examples/c/score.c -Ltarget/release -ltuco_c -o score
 *     LD_LIBRARY_PATH=target/release ./score models/demo/base models/demo/tuned "What is the capital of France?"
 */
#include "tuco.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: %s BASE TUNED PROMPT...\n", argv[0]);
        return TUCO_USAGE;
    }
    const tuco_option options[] = {{"base", argv[1]}, {"tuned", argv[2]}, {"device", "cpu"}};
    tuco_session *session;
    int status = tuco_open(options, sizeof options / sizeof *options, &session);
    if (status != TUCO_OK) {
        fprintf(stderr, "%s\n", tuco_last_error());
        return status;
    }
    fputs(tuco_take_warnings(session), stderr);
    size_t count = (size_t)argc - 3;
    tuco_score *scores = calloc(count, sizeof *scores);
    status = scores ? tuco_score_text(session, (const char *const *)argv + 3, count, scores) : TUCO_FAILED;
    if (status == TUCO_OK) {
        for (size_t i = 0; i < count; i++)
            printf("%.17g %zu %s\n", scores[i].tuco, scores[i].n_tokens, argv[3 + i]);
    } else {
        fprintf(stderr, "%s\n", scores ? tuco_last_error() : "out of memory");
    }
    free(scores);
    tuco_close(session);
    return status;
}
