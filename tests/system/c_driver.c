/* Lets a test call the C runtime, functions inside it too: a command a line on standard input, an answer a line on standard output,
   which is the code of the call and what came of it, or the sentence. Fields are separated by tabs. */
#define _XOPEN_SOURCE 700
#define _DEFAULT_SOURCE 1
#define _DARWIN_C_SOURCE
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static size_t allocations, starving; /* by the runtime's own code; 1: the next one fails, 2: the one after it */

static int is_refused(void) {
    allocations++;
    if (!starving || --starving)
        return 0;
    errno = ENOMEM;
    return 1;
}

static void *counted_malloc(size_t size) {
    return is_refused() ? NULL : malloc(size);
}

static void *counted_calloc(size_t count, size_t size) {
    return is_refused() ? NULL : calloc(count, size);
}

static void *counted_realloc(void *old, size_t size) {
    return is_refused() ? NULL : realloc(old, size);
}

static int counted_memalign(void **block, size_t alignment, size_t size) {
    return is_refused() ? ENOMEM : posix_memalign(block, alignment, size);
}

static size_t sweeping; /* so many new files are gone before they are locked */

static int swept_flock(int file, int how) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = sweeping ? readlink(link, path, sizeof path - 1) : -1;
    if (length > 0 && sweeping--) {
        path[length] = 0;
        unlink(path);
    }
    return flock(file, how);
}

#define flock swept_flock
#define posix_memalign counted_memalign
#define malloc counted_malloc
#define calloc counted_calloc
#define realloc counted_realloc
#include "xlstm_edge.c"
#undef flock
#undef posix_memalign
#undef malloc
#undef calloc
#undef realloc

enum { LONGEST_LINE = 1 << 20, MOST_IDS = 1 << 16 };

static xe_model_t *model;
static xe_session_t *session;
static xe_sampler_t *sampler;
static xe_decoder_t *decoder;
static const float *logits;
static int64_t ids[MOST_IDS];

static void forget(void) {
    xe_free_decoder(decoder);
    xe_free_sampler(sampler);
    xe_free_session(session);
    xe_free_model(model);
    decoder = NULL;
    sampler = NULL;
    session = NULL;
    model = NULL;
}

static void answer(int code) {
    printf("%d\t%s\n", code, code ? xe_error() : "");
}

/* Numbers with blanks between them, from the end of a line. */
static size_t read_ids(char *text) {
    size_t count = 0;
    for (char *word = text ? strtok(text, " ") : NULL; word && count < MOST_IDS; word = strtok(NULL, " "))
        ids[count++] = strtoll(word, NULL, 10);
    return count;
}

static int load(const char *path, int hash_all) {
    xe_options options = {NULL, 1, 0, hash_all};
    forget();
    int code = xe_load(path, &options, &model);
    return code ? code : xe_session(model, &session);
}

/* Only the text of a manifest, without its files. */
static int manifest(const char *path) {
    struct manifest m;
    const char *reason;
    size_t size;
    memset(&m, 0, sizeof m);
    char *bytes = read_whole(path, LARGEST_MANIFEST, &size, &reason);
    int code = bytes ? parse_manifest(&m, bytes, size) : fail(XE_BUNDLE, "expected a manifest, got %s; check it", reason);
    free_manifest(&m);
    return code;
}

static int fork_session(void) {
    xe_session_t *branch;
    int code = xe_fork(session, &branch);
    if (!code) {
        xe_free_session(session);
        session = branch;
    }
    return code;
}

/* VOCAB, SEED, then name=value for the others; bias as id:value, banned as id. */
static int make_sampler(char *words) {
    static int64_t bias_ids[64], banned[64];
    static float biases[64];
    xe_sampling o;
    size_t prompt = 0;
    xe_sampling_defaults(NULL, &o);
    char *word = strtok(words, " ");
    long long vocab = strtoll(word, NULL, 10);
    o.seed = strtoull(strtok(NULL, " "), NULL, 10);
    o.bias_ids = bias_ids;
    o.bias_values = biases;
    o.banned = banned;
    while ((word = strtok(NULL, " "))) {
        char *value = strchr(word, '=') + 1, *behind = strchr(value, ':');
        double number = strtod(value, NULL);
        value[-1] = 0;
        if (!strcmp(word, "bias")) {
            bias_ids[o.bias_count] = strtoll(value, NULL, 10);
            biases[o.bias_count++] = (float)strtod(behind + 1, NULL);
        } else if (!strcmp(word, "banned"))
            banned[o.banned_count++] = (int64_t)number;
        else if (!strcmp(word, "prompt"))
            ids[prompt++] = (int64_t)number;
        else if (!strcmp(word, "top_k") || !strcmp(word, "penalty_window"))
            *(*word == 't' ? &o.top_k : &o.penalty_window) = (int64_t)number;
        else {
            double *place = !strcmp(word, "temperature")          ? &o.temperature
                            : !strcmp(word, "top_p")              ? &o.top_p
                            : !strcmp(word, "min_p")              ? &o.min_p
                            : !strcmp(word, "repetition_penalty") ? &o.repetition_penalty
                            : !strcmp(word, "presence_penalty")   ? &o.presence_penalty
                                                                  : &o.frequency_penalty;
            *place = number;
        }
    }
    xe_free_sampler(sampler);
    return xe_sampler(vocab, &o, ids, prompt, &sampler);
}

/* SALT and STEPS: ids out of the logits that tests/golden/sampling.json describes. */
static void golden(char *words) {
    size_t vocab = sampler->vocab_size;
    uint64_t salt = strtoull(strtok(words, " "), NULL, 10), steps = strtoull(strtok(NULL, " "), NULL, 10);
    float *z = calloc(vocab, sizeof *z);
    int code = XE_OK;
    printf("0\t");
    for (uint64_t t = 0; t < steps && !code; t++) {
        int64_t id;
        for (size_t i = 0; i < vocab; i++)
            z[i] = (float)((double)((i * 2654435761u + salt * 40503 + t * 97) % ((uint64_t)1 << 32) >> 16) / 4096 - 8);
        code = xe_sample(sampler, z, &id);
        printf("%lld ", (long long)id);
    }
    printf("%s\n", code ? xe_error() : "");
    free(z);
}

/* Logits from a file of float32 numbers, step after step. */
static void sample_file(const char *path) {
    const char *reason;
    size_t size, vocab = sampler->vocab_size;
    char *bytes = read_whole(path, UINT32_MAX, &size, &reason);
    printf("0\t");
    for (size_t t = 0; bytes && (t + 1) * vocab * sizeof(float) <= size; t++) {
        int64_t id = -1;
        int code = xe_sample(sampler, (const float *)(const void *)bytes + t * vocab, &id);
        printf("%lld ", code ? -(long long)code : (long long)id);
    }
    printf("\n");
    free(bytes);
}

static void decode(size_t count) {
    if (!decoder) {
        int code = xe_decoder(model, &decoder);
        if (code) {
            answer(code);
            return;
        }
    }
    printf("0\t"); /* nothing allocates from here on */
    for (size_t i = 0; i < count; i++) {
        const char *bytes = "";
        size_t size = 0;
        xe_decode(decoder, ids[i], &bytes, &size);
        for (size_t j = 0; j < size; j++)
            printf("%02x", (unsigned char)bytes[j]);
    }
    printf("\n");
}

static void show_logits(void) {
    printf("0\t");
    for (int64_t i = 0; i < xe_vocab_size(model); i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof bits);
        printf("%08x", (unsigned)bits);
    }
    printf("\n");
}

/* Ids from the last call's logits on, by the sampler, and why they ended. */
static void generate(char *words) {
    size_t count, most = (size_t)strtoul(words, NULL, 10), stops;
    const int64_t *stop = xe_stop_ids(model, &stops);
    int code = XE_OK;
    printf("0\t");
    for (count = 0; count < most && !code; count++) {
        int64_t id = -1;
        code = xe_sample(sampler, logits, &id);
        for (size_t i = 0; i < stops; i++)
            if (!code && stop[i] == id) {
                printf("eos\n");
                return;
            }
        code = code ? code : xe_step(session, id, &logits);
        printf("%lld ", (long long)id);
    }
    printf("%s\n", code ? xe_error() : "length");
}

/* The bundle's defaults, in the words of `sampler`. */
static void defaults(void) {
    xe_sampling o;
    xe_sampling_defaults(model, &o);
    printf("0\ttemperature=%.17g top_k=%lld top_p=%.17g min_p=%.17g repetition_penalty=%.17g penalty_window=%lld\n", o.temperature,
           (long long)o.top_k, o.top_p, o.min_p, o.repetition_penalty, (long long)o.penalty_window);
}

/* weight() of doubles as %a writes them. */
static void show_weights(char *words) {
    printf("0\t");
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " "))
        printf("%llu ", (unsigned long long)weight(strtod(word, NULL)));
    printf("\n");
}

/* SEED, then limits: a random number below each; 0: the number itself. */
static void show_random(char *words) {
    uint64_t state = strtoull(strtok(words, " "), NULL, 10);
    printf("0\t");
    for (char *word = strtok(NULL, " "); word; word = strtok(NULL, " ")) {
        uint64_t limit = strtoull(word, NULL, 10), number = next_random(&state);
        printf("%llu ", (unsigned long long)(limit ? high_product(number, limit) : number));
    }
    printf("\n");
}

/* Allocations of so many steps, samples and decoded ids. */
static void count_allocations(char *words) {
    long steps = strtol(words, NULL, 10);
    size_t before = allocations, size;
    const char *bytes;
    int64_t id = 1;
    int code = XE_OK;
    for (long i = 0; i < steps && !code; i++) {
        code = xe_step(session, id, &logits);
        code = code ? code : xe_sample(sampler, logits, &id);
        code = code ? code : xe_decode(decoder, id, &bytes, &size);
    }
    printf("%d\t%zu\n", code, allocations - before);
}

static void hash(const char *path) {
    const char *reason = "";
    char hex[65];
    int is_done = hash_file(path, hex, &reason);
    printf("%d\t%s\n", !is_done, is_done ? hex : reason);
}

static void obey(const char *command, char *rest) {
    if (!strcmp(command, "load"))
        answer(load(rest, strtok(NULL, "\t") != NULL));
    else if (!strcmp(command, "manifest"))
        answer(manifest(rest));
    else if (!strcmp(command, "hash"))
        hash(rest);
    else if (!strcmp(command, "sampler"))
        answer(make_sampler(rest));
    else if (!strcmp(command, "golden"))
        golden(rest);
    else if (!strcmp(command, "sample_file"))
        sample_file(rest);
    else if (!strcmp(command, "sweep")) {
        sweeping = strtoul(rest, NULL, 10);
        printf("0\t\n");
    } else if (!strcmp(command, "starve")) { /* N; the answer: whether the last one's allocation was reached */
        size_t before = starving;
        starving = strtoul(rest, NULL, 10);
        printf("0\t%d\n", !before);
    } else if (!strcmp(command, "weights"))
        show_weights(rest);
    else if (!strcmp(command, "random"))
        show_random(rest);
    else if (!session)
        printf("9\tno session\n");
    else if (!strcmp(command, "prefill"))
        answer(xe_prefill(session, ids, read_ids(rest), &logits));
    else if (!strcmp(command, "logits"))
        show_logits();
    else if (!strcmp(command, "fork"))
        answer(fork_session());
    else if (!strcmp(command, "save"))
        answer(xe_save(session, rest));
    else if (!strcmp(command, "restore"))
        answer(xe_restore(session, rest));
    else if (!strcmp(command, "tokens"))
        printf("0\t%llu\n", (unsigned long long)xe_tokens(session));
    else if (!strcmp(command, "generate"))
        generate(rest);
    else if (!strcmp(command, "defaults"))
        defaults();
    else if (!strcmp(command, "decode"))
        decode(read_ids(rest));
    else if (!strcmp(command, "allocations"))
        count_allocations(rest);
    else
        printf("9\tno such command\n");
}

int main(void) {
    setlocale(LC_ALL, ""); /* as apps do */
    static char line[LONGEST_LINE];
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        char *command = strtok(line, "\t"), *rest = command ? strtok(NULL, "\t") : NULL;
        if (command)
            obey(command, rest);
        fflush(stdout);
    }
    forget();
    return 0;
}
