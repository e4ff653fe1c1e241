/* Tokens a second of a bundle: measure BUNDLE TOKENS. Built and run by runtimes.py. */
#define _POSIX_C_SOURCE 199309L
#include "../../runtime/c/xlstm_edge.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int steps(xe_session_t *session, long count) {
    const float *logits;
    long i;
    for (i = 0; i < count; i++)
        if (xe_step(session, i % 100, &logits)) return 1;
    return 0;
}

int main(int argc, char **argv) {
    xe_options options = {NULL, 1, 0, 0};
    xe_model_t *model;
    xe_session_t *session;
    long count = argc > 2 ? atol(argv[2]) : 0;
    double begin;
    if (argc != 3 || xe_load(argv[1], &options, &model) || xe_session(model, &session) || steps(session, 16)) {
        fprintf(stderr, "error: %s\n", argc == 3 ? xe_error() : "expected BUNDLE TOKENS");
        return 2;
    }
    begin = seconds();
    if (steps(session, count)) return 2;
    printf("%f\n", (double)count / (seconds() - begin));
    return 0;
}
