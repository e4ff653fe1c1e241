/* What XlstmEdge.java calls. A pointer crosses as a long; an object that was closed is 0, which every call refuses. */
#include "../../xlstm_edge.h"

#include <jni.h>

#define CALL(type, name) JNIEXPORT type JNICALL Java_XlstmEdge_##name

/* A pending exception with a sentence; every caller returns right after. */
static void throw_sentence(JNIEnv *java, const char *kind, const char *text) {
    jclass thrown = (*java)->FindClass(java, kind);
    if (thrown) (*java)->ThrowNew(java, thrown, text);
}

static void throw_error(JNIEnv *java, int code) {
    const char *kind = code == XE_INPUT ? "java/lang/IllegalArgumentException" : "java/lang/RuntimeException";
    throw_sentence(java, kind, xe_error());
}

static int is_closed(JNIEnv *java, jlong object) {
    if (!object) throw_sentence(java, "java/lang/IllegalStateException", "expected an open object, got a closed one; make another");
    return !object;
}

/* NULL where there is none, or with an exception. */
static const char *text_of(JNIEnv *java, jstring text) {
    return text ? (*java)->GetStringUTFChars(java, text, NULL) : NULL;
}

static void done_with(JNIEnv *java, jstring text, const char *bytes) {
    if (bytes) (*java)->ReleaseStringUTFChars(java, text, bytes);
}

CALL(jlong, load)(JNIEnv *java, jclass self, jstring folder, jstring onnxruntime, jint threads) {
    xe_options options = {NULL, threads, 0, 0};
    xe_model_t *model = NULL;
    const char *path = text_of(java, folder);
    int code;
    (void)self;
    options.onnxruntime = text_of(java, onnxruntime);
    code = path ? xe_load(path, &options, &model) : XE_OK;
    if (code) throw_error(java, code);
    else if (!path) throw_sentence(java, "java/lang/IllegalArgumentException", "expected a bundle's folder, got null; pass its path");
    done_with(java, onnxruntime, options.onnxruntime);
    done_with(java, folder, path);
    return (jlong)(intptr_t)model;
}

CALL(void, freeModel)(JNIEnv *java, jclass self, jlong model) {
    (void)java, (void)self;
    xe_free_model((xe_model_t *)(intptr_t)model);
}

CALL(jboolean, stopsAt)(JNIEnv *java, jclass self, jlong model, jlong id) {
    const int64_t *stops;
    size_t count;
    (void)self;
    if (is_closed(java, model)) return JNI_FALSE;
    stops = xe_stop_ids((xe_model_t *)(intptr_t)model, &count);
    while (count--)
        if (stops[count] == id) return JNI_TRUE;
    return JNI_FALSE;
}

CALL(jlong, session)(JNIEnv *java, jclass self, jlong model) {
    xe_session_t *session = NULL;
    int code;
    (void)self;
    if (is_closed(java, model)) return 0;
    code = xe_session((xe_model_t *)(intptr_t)model, &session);
    if (code) throw_error(java, code);
    return (jlong)(intptr_t)session;
}

CALL(void, freeSession)(JNIEnv *java, jclass self, jlong session) {
    (void)java, (void)self;
    xe_free_session((xe_session_t *)(intptr_t)session);
}

CALL(jfloatArray, prefill)(JNIEnv *java, jclass self, jlong model, jlong session, jlongArray ids) {
    const float *logits = NULL;
    jlong *numbers;
    jsize count;
    jfloatArray given;
    int code;
    (void)self;
    if (is_closed(java, model) || is_closed(java, session)) return NULL;
    count = ids ? (*java)->GetArrayLength(java, ids) : 0;
    numbers = ids ? (*java)->GetLongArrayElements(java, ids, NULL) : NULL;
    if (ids && !numbers) return NULL;
    code = xe_prefill((xe_session_t *)(intptr_t)session, (const int64_t *)numbers, (size_t)count, &logits);
    if (numbers) (*java)->ReleaseLongArrayElements(java, ids, numbers, JNI_ABORT);
    if (code) {
        throw_error(java, code);
        return NULL;
    }
    count = (jsize)xe_vocab_size((xe_model_t *)(intptr_t)model);
    given = (*java)->NewFloatArray(java, count);
    if (given) (*java)->SetFloatArrayRegion(java, given, 0, count, logits);
    return given;
}

CALL(jlong, fork)(JNIEnv *java, jclass self, jlong session) {
    xe_session_t *branch = NULL;
    int code;
    (void)self;
    if (is_closed(java, session)) return 0;
    code = xe_fork((xe_session_t *)(intptr_t)session, &branch);
    if (code) throw_error(java, code);
    return (jlong)(intptr_t)branch;
}

CALL(void, save)(JNIEnv *java, jclass self, jlong session, jstring path) {
    const char *bytes = text_of(java, path);
    int code;
    (void)self;
    if (bytes && !is_closed(java, session)) {
        code = xe_save((xe_session_t *)(intptr_t)session, bytes);
        if (code) throw_error(java, code);
    }
    done_with(java, path, bytes);
}

CALL(void, restore)(JNIEnv *java, jclass self, jlong session, jstring path) {
    const char *bytes = text_of(java, path);
    int code;
    (void)self;
    if (bytes && !is_closed(java, session)) {
        code = xe_restore((xe_session_t *)(intptr_t)session, bytes);
        if (code) throw_error(java, code);
    }
    done_with(java, path, bytes);
}

CALL(jlong, tokens)(JNIEnv *java, jclass self, jlong session) {
    (void)self;
    return is_closed(java, session) ? 0 : (jlong)xe_tokens((xe_session_t *)(intptr_t)session);
}

/* The bundle's defaults, but for these; NaN is refused with the sampler's own sentence. */
CALL(jlong, sampler)(JNIEnv *java, jclass self, jlong model, jlongArray prompt, jdouble temperature, jlong seed) {
    xe_sampling options;
    xe_sampler_t *sampler = NULL;
    jlong *ids;
    jsize count;
    int code;
    (void)self;
    if (is_closed(java, model)) return 0;
    xe_sampling_defaults((xe_model_t *)(intptr_t)model, &options);
    options.temperature = temperature;
    options.seed = (uint64_t)seed;
    count = prompt ? (*java)->GetArrayLength(java, prompt) : 0;
    ids = prompt ? (*java)->GetLongArrayElements(java, prompt, NULL) : NULL;
    if (prompt && !ids) return 0;
    code = xe_sampler(xe_vocab_size((xe_model_t *)(intptr_t)model), &options, (const int64_t *)ids, (size_t)count, &sampler);
    if (ids) (*java)->ReleaseLongArrayElements(java, prompt, ids, JNI_ABORT);
    if (code) throw_error(java, code);
    return (jlong)(intptr_t)sampler;
}

CALL(void, freeSampler)(JNIEnv *java, jclass self, jlong sampler) {
    (void)java, (void)self;
    xe_free_sampler((xe_sampler_t *)(intptr_t)sampler);
}

CALL(jlong, sample)(JNIEnv *java, jclass self, jlong model, jlong sampler, jfloatArray logits) {
    jfloat *numbers;
    int64_t id = 0;
    int code;
    (void)self;
    if (is_closed(java, model) || is_closed(java, sampler)) return 0;
    if (!logits || (*java)->GetArrayLength(java, logits) != xe_vocab_size((xe_model_t *)(intptr_t)model)) {
        throw_sentence(java, "java/lang/IllegalArgumentException", "expected one logit for each id, got another number; pass what step gave");
        return 0;
    }
    numbers = (*java)->GetFloatArrayElements(java, logits, NULL);
    if (!numbers) return 0;
    code = xe_sample((xe_sampler_t *)(intptr_t)sampler, numbers, &id);
    (*java)->ReleaseFloatArrayElements(java, logits, numbers, JNI_ABORT);
    if (code) throw_error(java, code);
    return id;
}
