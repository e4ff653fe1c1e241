// xlstm_edge.h for C++11: objects that free themselves, and exceptions that carry the code and the sentence.
//
//     xe::Model model("bundle");
//     xe::Session session = model.session();
//     const float *logits = session.prefill({5, 17, 3});
//
// The rules for threads and lifetimes are those of xlstm_edge.h: a model must outlive what was made of it.
#ifndef XLSTM_EDGE_HPP
#define XLSTM_EDGE_HPP

#include "xlstm_edge.h"

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace xe {

class Error : public std::runtime_error {
public:
    explicit Error(int code) : std::runtime_error(xe_error()), code_(code) {}
    int code() const { return code_; } // of enum xe_code

private:
    int code_;
};

inline void check(int code) {
    if (code != XE_OK)
        throw Error(code);
}

template <typename T, void (*release)(T *)> struct Free {
    void operator()(T *object) const { release(object); }
};

// One stream. The logits that a call returns hold until the next call.
class Session {
public:
    explicit Session(const xe_model_t *model) {
        xe_session_t *made = nullptr;
        check(xe_session(model, &made));
        session_.reset(made);
    }
    const float *prefill(const std::vector<int64_t> &ids) {
        const float *logits = nullptr;
        check(xe_prefill(session_.get(), ids.data(), ids.size(), &logits));
        return logits;
    }
    const float *step(int64_t id) {
        const float *logits = nullptr;
        check(xe_step(session_.get(), id, &logits));
        return logits;
    }
    Session fork() const {
        xe_session_t *branch = nullptr;
        check(xe_fork(session_.get(), &branch));
        return Session(branch);
    }
    void save(const std::string &path) const { check(xe_save(session_.get(), path.c_str())); }
    void restore(const std::string &path) { check(xe_restore(session_.get(), path.c_str())); }
    void reset() { xe_reset(session_.get()); }
    uint64_t tokens() const { return xe_tokens(session_.get()); }

private:
    explicit Session(xe_session_t *made) : session_(made) {}
    std::unique_ptr<xe_session_t, Free<xe_session_t, xe_free_session>> session_;
};

// A bundle, loaded once.
class Model {
public:
    explicit Model(const std::string &folder, const xe_options &options = xe_options()) {
        xe_model_t *made = nullptr;
        check(xe_load(folder.c_str(), &options, &made));
        model_.reset(made);
    }
    const xe_model_t *get() const { return model_.get(); }
    Session session() const { return Session(static_cast<const xe_model_t *>(model_.get())); }
    int64_t vocab_size() const { return xe_vocab_size(model_.get()); }
    std::vector<int64_t> stop_ids() const {
        size_t count = 0;
        const int64_t *ids = xe_stop_ids(model_.get(), &count);
        return std::vector<int64_t>(ids, ids + count);
    }
    xe_sampling sampling() const { // the bundle's defaults
        xe_sampling options;
        xe_sampling_defaults(model_.get(), &options);
        return options;
    }

private:
    std::unique_ptr<xe_model_t, Free<xe_model_t, xe_free_model>> model_;
};

// logits -> id
class Sampler {
public:
    explicit Sampler(const Model &model) : Sampler(model, model.sampling()) {}
    Sampler(const Model &model, const xe_sampling &options, const std::vector<int64_t> &prompt = {}) {
        xe_sampler_t *made = nullptr;
        check(xe_sampler(model.vocab_size(), &options, prompt.data(), prompt.size(), &made));
        sampler_.reset(made);
    }
    int64_t operator()(const float *logits) {
        int64_t id = 0;
        check(xe_sample(sampler_.get(), logits, &id));
        return id;
    }

private:
    std::unique_ptr<xe_sampler_t, Free<xe_sampler_t, xe_free_sampler>> sampler_;
};

// ids -> bytes of UTF-8
class Decoder {
public:
    explicit Decoder(const Model &model) {
        xe_decoder_t *made = nullptr;
        check(xe_decoder(model.get(), &made));
        decoder_.reset(made);
    }
    std::string operator()(int64_t id) const {
        const char *bytes = nullptr;
        size_t count = 0;
        check(xe_decode(decoder_.get(), id, &bytes, &count));
        return std::string(bytes, count);
    }

private:
    std::unique_ptr<xe_decoder_t, Free<xe_decoder_t, xe_free_decoder>> decoder_;
};

} // namespace xe

#endif
