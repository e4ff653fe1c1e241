/* Stream xLSTM bundles in C99: libc, libm and onnxruntime's shared library, which is found when a bundle is loaded.

       xe_model_t *model; xe_session_t *session; const float *logits;
       if (xe_load("bundle", NULL, &model) || xe_session(model, &session) || xe_prefill(session, ids, 3, &logits))
           fprintf(stderr, "%s\n", xe_error());

   Errors. Every call that can fail returns a code: XE_OK, or the class of what is wrong; xe_error() is then one English
   sentence, until the next failing call of the same thread. A call that fails has made nothing, and a session is as it was;
   a prompt that fails halfway leaves it after a whole number of chunks (xe_tokens says where).

   Threads. A model never changes once it is loaded: any number of threads may use it, each with sessions, samplers and
   decoders of its own. A session, a sampler or a decoder belongs to one thread at a time. The first xe_load of a process sets an
   environment variable (ORT_DISABLE_TELEMETRY): call it before another thread reads the environment.

   Memory. A session allocates when it is made; xe_step, xe_sample and xe_decode allocate nothing. Free sessions, samplers and
   decoders before their model. Freeing NULL does nothing. */
#ifndef XLSTM_EDGE_H
#define XLSTM_EDGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum xe_code {
    XE_OK = 0,
    XE_INPUT = 1,        /* an argument is wrong */
    XE_BUNDLE = 2,       /* a bundle cannot be used: none, another schema, damaged or missing files */
    XE_STATE = 3,        /* a snapshot does not belong to this model, or is damaged */
    XE_VERIFICATION = 4, /* logits that are no numbers */
    XE_DEPENDENCY = 5,   /* no onnxruntime, or a machine or build that this code is not for */
    XE_MEMORY = 6        /* no memory left */
};

typedef struct xe_model_t xe_model_t;     /* a bundle, its weights loaded once */
typedef struct xe_session_t xe_session_t; /* one stream: a recurrent state of constant size */
typedef struct xe_sampler_t xe_sampler_t; /* logits -> id */
typedef struct xe_decoder_t xe_decoder_t; /* ids -> bytes of text */

/* How to load; all zero, or no options at all, are the defaults. */
typedef struct {
    const char *onnxruntime; /* path of the shared library; NULL: $XLSTM_EDGE_ONNXRUNTIME, else the usual names */
    int threads;             /* of one call; 0: onnxruntime's choice, the physical cores */
    int spin;                /* microseconds a thread waits busily for work; 0: the default of 20, below 0: none */
    int hash_all;            /* not 0: hash large weights too, which otherwise are only measured */
} xe_options;

/* How to sample; begin with xe_sampling_defaults, for zeros are no defaults. The meaning is that of sampling.py: the same
   logits, options and seed give the same id in Python, JavaScript and C, on every machine. */
typedef struct {
    double temperature; /* 0 takes the largest logit */
    int64_t top_k;      /* 0: off */
    double top_p;       /* 1: off */
    double min_p;       /* 0: off */
    uint64_t seed;      /* bundles have none: choose one, or 0 comes every time */
    double repetition_penalty; /* 1: off; this and the next two look at the last penalty_window tokens */
    double presence_penalty, frequency_penalty;
    int64_t penalty_window;
    const int64_t *bias_ids; /* bias_values[i] is added to the logit of bias_ids[i]; -INFINITY bans it */
    const float *bias_values;
    size_t bias_count;
    const int64_t *banned; /* ids that never come */
    size_t banned_count;
} xe_sampling;

/* The sentence of this thread's last error. */
const char *xe_error(void);

/* Load a bundle folder: manifest, sizes, hashes, graph and its inputs and outputs are checked before the first token. */
int xe_load(const char *folder, const xe_options *options, xe_model_t **model);
void xe_free_model(xe_model_t *model);
int64_t xe_vocab_size(const xe_model_t *model);
size_t xe_state_bytes(const xe_model_t *model);
const int64_t *xe_stop_ids(const xe_model_t *model, size_t *count); /* they end a generation and are not fed */
int64_t xe_bos_id(const xe_model_t *model);                         /* what a prompt begins with; -1: nothing */

/* A new stream in the zero state. */
int xe_session(const xe_model_t *model, xe_session_t **session);
void xe_free_session(xe_session_t *session);

/* Read ids. `logits`, of xe_vocab_size numbers, are the session's own and hold until its next call; NULL asks for none. */
int xe_prefill(xe_session_t *session, const int64_t *ids, size_t count, const float **logits);
int xe_step(xe_session_t *session, int64_t id, const float **logits);
uint64_t xe_tokens(const xe_session_t *session); /* read since the zero state */
void xe_reset(xe_session_t *session);            /* back to it */

/* An independent session that continues from here: one copy of the state. */
int xe_fork(const xe_session_t *session, xe_session_t **branch);

/* The state as a file, the same as Python's session.save and load write and read. A file appears whole or not at all. */
int xe_save(const xe_session_t *session, const char *path);
int xe_restore(xe_session_t *session, const char *path);

/* A bundle's defaults; of the library where `model` is NULL. */
void xe_sampling_defaults(const xe_model_t *model, xe_sampling *options);

/* A sampler over `vocab_size` logits; the ids of `prompt` count as seen. It keeps copies of everything. */
int xe_sampler(int64_t vocab_size, const xe_sampling *options, const int64_t *prompt, size_t count, xe_sampler_t **sampler);
void xe_free_sampler(xe_sampler_t *sampler);
int xe_sample(xe_sampler_t *sampler, const float *logits, int64_t *id);

/* A decoder for tokenizers of kind byte, and tokenizer.json whose decoder is ByteLevel; XE_INPUT or XE_BUNDLE for others. */
int xe_decoder(const xe_model_t *model, xe_decoder_t **decoder);
void xe_free_decoder(xe_decoder_t *decoder);

/* The bytes of an id, the decoder's own: put together, those of a stream are its UTF-8 text. None for special tokens. A character
   may be spread over several ids. */
int xe_decode(const xe_decoder_t *decoder, int64_t id, const char **bytes, size_t *count);

#ifdef __cplusplus
}
#endif
#endif
