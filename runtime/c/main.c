/* xlstm-edge-c BUNDLE IDS... [--max-tokens N] [--seed S] [--temperature T]: the ids that continue a prompt of ids. */
#include "xlstm_edge.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int ends_here(const xe_model_t *model, int64_t id) {
    size_t count;
    const int64_t *stops = xe_stop_ids(model, &count);
    while (count--)
        if (stops[count] == id)
            return 1;
    return 0;
}

static int generate(const char *bundle, const int64_t *ids, size_t count, xe_sampling *options, long long most) {
    xe_model_t *model = NULL;
    xe_session_t *session = NULL;
    xe_sampler_t *sampler = NULL;
    const float *logits;
    int64_t id;
    int code = xe_load(bundle, NULL, &model);
    code = code ? code : xe_session(model, &session);
    code = code ? code : xe_prefill(session, ids, count, &logits);
    code = code ? code : xe_sampler(xe_vocab_size(model), options, ids, count, &sampler);
    for (long long done = 0; !code && done < most; done++) {
        code = xe_sample(sampler, logits, &id);
        if (code || ends_here(model, id))
            break;
        code = xe_step(session, id, &logits); /* what is printed has been read */
        printf(done ? " %lld" : "%lld", (long long)id);
    }
    if (sampler)
        printf("\n");
    if (code)
        fprintf(stderr, "%s\n", xe_error());
    xe_free_sampler(sampler);
    xe_free_session(session);
    xe_free_model(model);
    return code;
}

int main(int count, char **words) {
    int64_t *ids = calloc((size_t)count + 1, sizeof *ids);
    size_t prompt = 0;
    long long most = 64;
    xe_sampling options;
    xe_sampling_defaults(NULL, &options);
    for (int i = 2, bad = !ids || count < 3; i < count || bad; i++) {
        char *end = "?";
        const char *name = bad ? "" : words[i];
        int is_option = !strncmp(name, "--", 2);
        const char *value = !is_option ? name : i + 1 < count ? words[++i] : "";
        errno = 0;
        if (!*value || !strchr("0123456789.", *value)) /* a sign would wrap, and nothing be 0 */
            ;
        else if (!strcmp(name, "--max-tokens"))
            most = strtoll(value, &end, 10);
        else if (!strcmp(name, "--seed"))
            options.seed = strtoull(value, &end, 10);
        else if (!strcmp(name, "--temperature"))
            options.temperature = strtod(value, &end);
        else if (!is_option)
            ids[prompt++] = strtoll(value, &end, 10);
        if (*end || errno) {
            fprintf(stderr, "usage: xlstm-edge-c BUNDLE IDS... [--max-tokens N] [--seed S] [--temperature T]\n");
            return 2;
        }
    }
    int code = generate(words[1], ids, prompt, &options, most);
    free(ids);
    return code ? 1 : 0;
}
