/* BUNDLE LIBRARY FOLDER: four threads share a model, and a file for their snapshots; built with -fsanitize=thread by a test. */
#define _XOPEN_SOURCE 700
#include "xlstm_edge.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { THREADS = 4, ROUNDS = 10, STEPS = 5 };

static xe_model_t *model;
static char path[4096];
static int failures[THREADS];

/* A whole life of everything that belongs to one thread, and errors, whose sentence is the thread's own. */
static int live(uint64_t seed) {
    const int64_t prompt[3] = {1, 2, 3};
    xe_session_t *session = NULL, *branch = NULL;
    xe_sampler_t *sampler = NULL;
    xe_decoder_t *decoder = NULL;
    xe_model_t *nothing = NULL;
    xe_sampling options;
    const float *logits;
    const char *bytes;
    size_t count;
    int64_t id = 1;
    xe_sampling_defaults(model, &options);
    options.seed = seed;
    options.temperature = 1;
    int code = xe_session(model, &session);
    code = code ? code : xe_prefill(session, prompt, 3, &logits);
    code = code ? code : xe_sampler(xe_vocab_size(model), &options, prompt, 3, &sampler);
    code = code ? code : xe_decoder(model, &decoder);
    for (int i = 0; i < STEPS && !code; i++) {
        code = xe_sample(sampler, logits, &id);
        code = code ? code : xe_step(session, id, &logits);
        code = code ? code : xe_decode(decoder, id, &bytes, &count);
    }
    code = code ? code : xe_save(session, path);
    code = code ? code : xe_restore(session, path);
    code = code ? code : xe_fork(session, &branch);
    if (!code && (xe_load("/no such bundle", NULL, &nothing) != XE_BUNDLE || !strstr(xe_error(), "'/no such bundle', got No such file")))
        code = -1;
    xe_free_decoder(decoder);
    xe_free_sampler(sampler);
    xe_free_session(branch);
    xe_free_session(session);
    return code;
}

static void *work(void *number) {
    int *failure = number;
    for (int i = 0; i < ROUNDS && !*failure; i++)
        if ((*failure = live((uint64_t)(failure - failures))))
            fprintf(stderr, "%s\n", xe_error());
    return NULL;
}

int main(int count, char **words) {
    xe_options options = {count > 3 ? words[2] : NULL, 1, 0, 0};
    pthread_t threads[THREADS];
    int failed = 0;
    if (count < 4 || xe_load(words[1], &options, &model))
        return 1;
    snprintf(path, sizeof path, "%s/state", words[3]);
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, &failures[i]);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        failed |= failures[i];
    }
    xe_free_model(model);
    return failed != 0;
}
