/* The runtime for bundles in C99. xlstm_edge.h says how to call it; the formats and the sampler are those of the Python
   runtime, whose modules say why: manifest.py, graph_file.py, snapshot.py, sampling.py, exact_math.py.

   In this file: errors, sorting, SHA-256, files, JSON, reading documents, the manifest, graph files, onnxruntime, models,
   sessions, snapshots, sampling, decoding. */
#define _XOPEN_SOURCE 700
#define _DEFAULT_SOURCE 1 /* flock */
#define _DARWIN_C_SOURCE
#define _FILE_OFFSET_BITS 64

#include "xlstm_edge.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef __APPLE__
#include <xlocale.h>
#endif

#if defined(__FAST_MATH__) || (defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0)
#error "expected arithmetic as IEEE 754 has it; build without -ffast-math, and with SSE2 on x86"
#endif
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif
#ifdef __GNUC__
#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))
#else
#define PRINTF_LIKE(text, first)
#endif

/* ---- Errors ---- */

enum { LONGEST_SENTENCE = 1000, LONGEST_SHOWN = 120 };

static __thread char last_sentence[LONGEST_SENTENCE + 1];

const char *xe_error(void) {
    return last_sentence;
}

PRINTF_LIKE(2, 3) static int fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_sentence, sizeof last_sentence, format, arguments);
    va_end(arguments);
    return code;
}

static int no_memory(void) {
    return fail(XE_MEMORY, "expected memory for this call, got none; free some");
}

/* Foreign text in a sentence: in quotes, cut, and without anything that a terminal obeys. */
struct quote {
    char text[4 * LONGEST_SHOWN + 8];
};

static const char *quoted(struct quote *quote, const char *text, size_t length) {
    char *at = quote->text;
    *at++ = '\'';
    for (size_t i = 0; i < length && i < LONGEST_SHOWN; i++) {
        unsigned char c = (unsigned char)text[i];
        at += c >= 0x20 && c < 0x7F ? sprintf(at, "%c", c) : sprintf(at, "\\x%02x", c);
    }
    strcpy(at, length > LONGEST_SHOWN ? "'..." : "'");
    return quote->text;
}

/* The end of a path says more than its beginning. */
static const char *path_shown(struct quote *quote, const char *path) {
    size_t length = strlen(path);
    return quoted(quote, length > LONGEST_SHOWN ? path + length - LONGEST_SHOWN : path,
                  length > LONGEST_SHOWN ? LONGEST_SHOWN : length);
}

/* What an errno says, in this thread's own text: strerror may share one between threads. */
static const char *errno_shown(int number) {
    static __thread char told[128];
    return strerror_r(number, told, sizeof told) ? "an error of the system" : told;
}

/* A reason why a file was not read that is no fault of the file. */
static const char NO_MEMORY[] = "no memory";

/* The code of a failure to read a file: `code` in one sentence, or for lack of memory that. */
#define FAIL_FOR(reason, code, ...) ((reason) == NO_MEMORY ? no_memory() : fail(code, __VA_ARGS__))

/* ---- Sorting: heapsort, for what somebody else's file holds has no bad order ---- */

struct slice {
    const char *text;
    size_t length;
    uint64_t place;
};

static int by_text(const struct slice *a, const struct slice *b) {
    int order = memcmp(a->text, b->text, a->length < b->length ? a->length : b->length);
    return order ? order : (a->length > b->length) - (a->length < b->length);
}

static int by_place(const struct slice *a, const struct slice *b) {
    return (a->place > b->place) - (a->place < b->place);
}

typedef int compare_slices(const struct slice *, const struct slice *);

static void sift_slices(struct slice *slices, size_t root, size_t count, compare_slices *compare) {
    for (size_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && compare(&slices[child], &slices[child + 1]) < 0)
            child++;
        if (compare(&slices[root], &slices[child]) >= 0)
            return;
        struct slice held = slices[root];
        slices[root] = slices[child];
        slices[child] = held;
    }
}

static void sort_slices(struct slice *slices, size_t count, compare_slices *compare) {
    for (size_t root = count / 2; root-- > 0;)
        sift_slices(slices, root, count, compare);
    for (size_t end = count; end-- > 1;) {
        struct slice held = slices[0];
        slices[0] = slices[end];
        slices[end] = held;
        sift_slices(slices, 0, end, compare);
    }
}

/* Of slices that are sorted by text: the one with this text, or NULL. */
static struct slice *find_slice(struct slice *slices, size_t count, const char *text, size_t length) {
    struct slice wanted = {text, length, 0};
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (by_text(&slices[middle], &wanted) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && by_text(&slices[low], &wanted) == 0 ? &slices[low] : NULL;
}

/* Whether some text is there twice; sorts. */
static int has_twins(struct slice *slices, size_t count) {
    sort_slices(slices, count, by_text);
    for (size_t i = 1; i < count; i++)
        if (by_text(&slices[i - 1], &slices[i]) == 0)
            return 1;
    return 0;
}

/* ---- SHA-256 (FIPS 180-4) ---- */

struct sha256 {
    uint32_t state[8];
    unsigned char block[64];
    uint64_t size;
};

static const uint32_t SHA256_ROUNDS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static void sha256_begin(struct sha256 *hash) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(hash->state, start, sizeof start);
    hash->size = 0;
}

static uint32_t rotated(uint32_t word, int bits) {
    return word >> bits | word << (32 - bits);
}

static void sha256_block(uint32_t *state, const unsigned char *bytes) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++, bytes += 4)
        w[i] = (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
    for (int i = 16; i < 64; i++) {
        uint32_t first = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t second = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + first + w[i - 7] + second;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i++) {
        uint32_t one = h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + SHA256_ROUNDS[i] + w[i];
        uint32_t two = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + one;
        d = c, c = b, b = a, a = one + two;
    }
    uint32_t last[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++)
        state[i] += last[i];
}

static void sha256_add(struct sha256 *hash, const void *data, size_t count) {
    const unsigned char *bytes = data;
    size_t held = hash->size % 64;
    hash->size += count;
    if (held) {
        size_t part = count < 64 - held ? count : 64 - held;
        memcpy(hash->block + held, bytes, part);
        if (held + part < 64)
            return;
        sha256_block(hash->state, hash->block);
        bytes += part;
        count -= part;
    }
    for (; count >= 64; count -= 64, bytes += 64)
        sha256_block(hash->state, bytes);
    if (count)
        memcpy(hash->block, bytes, count);
}

static void sha256_end(struct sha256 *hash, char hex[65]) {
    unsigned char end[72] = {0x80};
    uint64_t bits = hash->size * 8;
    size_t padding = 64 - (hash->size + 8) % 64;
    for (int i = 0; i < 8; i++)
        end[padding + (size_t)i] = (unsigned char)(bits >> (56 - 8 * i));
    sha256_add(hash, end, padding + 8);
    for (int i = 0; i < 8; i++)
        sprintf(hex + 8 * i, "%08x", (unsigned)hash->state[i]);
}

/* ---- Files: regular ones, of bounded size ---- */

/* A descriptor, or -1 with the reason. A pipe without a writer would block for ever: it is refused before a byte is read. */
static int open_regular(const char *path, const char **reason) {
    struct stat found;
    int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) {
        *reason = errno_shown(errno);
        return -1;
    }
    if (fstat(file, &found) || !S_ISREG(found.st_mode)) {
        close(file);
        *reason = "no regular file";
        return -1;
    }
    return file;
}

static int64_t size_of(int file) {
    struct stat found;
    return fstat(file, &found) ? -1 : (int64_t)found.st_size;
}

/* Exactly so many bytes from a place of a file; 0 if they are not there. */
static int read_exactly(int file, void *bytes, size_t count, int64_t from) {
    char *at = bytes;
    while (count) {
        ssize_t got = pread(file, at, count, (off_t)from);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        at += got;
        from += got;
        count -= (size_t)got;
    }
    return 1;
}

/* The whole content of a regular file of at most `most` bytes, with a zero behind it; NULL with the reason. */
static char *read_whole(const char *path, uint64_t most, size_t *size, const char **reason) {
    int file = open_regular(path, reason);
    if (file < 0)
        return NULL;
    int64_t found = size_of(file);
    char *bytes = NULL;
    if (found < 0 || (uint64_t)found > most)
        *reason = "a file that is too large";
    else if (!(bytes = malloc((size_t)found + 1)))
        *reason = NO_MEMORY;
    else if (!read_exactly(file, bytes, (size_t)found, 0)) {
        *reason = "a file that cannot be read";
        free(bytes);
        bytes = NULL;
    }
    close(file);
    if (bytes)
        bytes[*size = (size_t)found] = 0;
    return bytes;
}

static char *joined(const char *folder, const char *name) {
    size_t size = strlen(folder) + strlen(name) + 2;
    char *path = malloc(size);
    if (path)
        snprintf(path, size, "%s/%s", folder, name);
    return path;
}

/* Cut a path before its last name, and return that name; of "/" nothing is left. */
static const char *cut_name(char *path) {
    char *slash = strrchr(path, '/');
    if (!slash)
        return path;
    *slash = 0;
    return slash + 1;
}

/* Whether a link is one of the Hugging Face cache: from snapshots/REVISION/ into blobs/ two levels up. */
static int is_cache_link(const char *folder, const char *path) {
    char *target = realpath(path, NULL), *snapshot = realpath(folder, NULL);
    int is_one = 0;
    if (target && snapshot) {
        cut_name(target);
        cut_name(snapshot);
        const char *middle = cut_name(snapshot);
        size_t length = strlen(snapshot);
        is_one = !strcmp(middle, "snapshots") && !strncmp(target, snapshot, length) && !strcmp(target + length, "/blobs");
    }
    free(target);
    free(snapshot);
    return is_one;
}

/* Size of a regular file of the bundle; -1 with the reason. */
static int64_t size_inside(const char *folder, const char *path, const char **reason) {
    struct stat found;
    if (lstat(path, &found)) {
        *reason = errno_shown(errno);
        return -1;
    }
    if (S_ISLNK(found.st_mode) && (!is_cache_link(folder, path) || stat(path, &found))) {
        *reason = "a link out of the folder";
        return -1;
    }
    if (!S_ISREG(found.st_mode)) {
        *reason = "no regular file";
        return -1;
    }
    return (int64_t)found.st_size;
}

/* The hash of a file; 0, with the reason, if it cannot be read. */
static int hash_file(const char *path, char hex[65], const char **reason) {
    enum { BLOCK = 1 << 16 };
    struct sha256 hash;
    ssize_t got = 0;
    int file = open_regular(path, reason);
    char *block = file < 0 ? NULL : malloc(BLOCK);
    if (file >= 0 && !block)
        *reason = NO_MEMORY;
    if (block) {
        sha256_begin(&hash);
        while ((got = read(file, block, BLOCK)) > 0)
            sha256_add(&hash, block, (size_t)got);
        sha256_end(&hash, hex);
        if (got < 0)
            *reason = errno_shown(errno);
    }
    if (file >= 0)
        close(file);
    free(block);
    return block && got == 0;
}

/* ---- JSON: the standard's, in UTF-8, no key twice, bounded in depth and number of values ---- */

enum { DEEPEST = 32, MOST_DIGITS = 4300 };

enum kind { JSON_NULL, JSON_TRUE, JSON_FALSE, JSON_INTEGER, JSON_FLOAT, JSON_TEXT, JSON_LIST, JSON_OBJECT };

/* A value. Texts are decoded in place and end in a zero; a number's text is its literal. Node 0 is none, node 1 the root. */
struct node {
    enum kind kind;
    uint32_t count, first, next; /* members, the first of them, the next in the same list or object */
    const char *key, *text;
    size_t key_length, length;
    int64_t integer; /* as near as 64 bits come */
    double number;
};

/* `code` is the class of what is wrong with this document, `advice` what to do, `failed` not 0 as soon as something is wrong. */
struct document {
    const char *name, *advice;
    int code, failed;
    char *bytes, *at, *end;
    struct node *nodes;
    uint32_t used, room, most;
};

static uint32_t json_value(struct document *d, int depth);

static uint32_t json_node(struct document *d) {
    if (d->used == d->room) {
        uint32_t room = d->room ? 2 * d->room : 256;
        struct node *nodes = room > d->most ? NULL : realloc(d->nodes, room * sizeof *nodes);
        if (!nodes && room <= d->most)
            d->failed = no_memory();
        if (!nodes)
            return 0;
        d->nodes = nodes;
        d->room = room;
        d->used = d->used ? d->used : 1;
    }
    memset(&d->nodes[d->used], 0, sizeof *d->nodes);
    return d->used++;
}

static void json_space(struct document *d) {
    while (d->at < d->end && strchr(" \t\n\r", *d->at) && *d->at)
        d->at++;
}

static int json_is(struct document *d, char wanted) {
    json_space(d);
    if (d->at < d->end && *d->at == wanted) {
        d->at++;
        return 1;
    }
    return 0;
}

/* Four hexadecimal digits, or -1. */
static long json_hex(struct document *d) {
    long value = 0;
    if (d->end - d->at < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        const char *digits = "0123456789abcdef0123456789ABCDEF", *found = strchr(digits, *d->at++);
        if (!found || !*found)
            return -1;
        value = value << 4 | (long)(found - digits) % 16;
    }
    return value;
}

/* A code point as UTF-8; half of a pair in the same way, which UTF-8 itself cannot hold, so that none looks like another. */
static char *put_utf8(char *out, long point) {
    if (point < 0x80) {
        *out++ = (char)point;
        return out;
    }
    int more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    *out++ = (char)((0xF00 >> (more + 1) & 0xFF) | point >> 6 * more);
    while (more--)
        *out++ = (char)(0x80 | (point >> 6 * more & 0x3F));
    return out;
}

/* What stands behind \u, two of them for a pair; -1 if it is no number. */
static long json_code(struct document *d) {
    long point = json_hex(d);
    if (point >= 0xD800 && point < 0xDC00 && d->end - d->at >= 6 && d->at[0] == '\\' && d->at[1] == 'u') {
        char *back = d->at;
        d->at += 2;
        long low = json_hex(d);
        if (low >= 0xDC00 && low < 0xE000)
            return 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
        d->at = back;
    }
    return point;
}

/* A text behind its first quote, decoded in place: no escape is shorter than what it stands for. */
static int json_text(struct document *d, const char **text, size_t *length) {
    char *out = d->at;
    *text = out;
    while (d->at < d->end && *d->at != '"') {
        unsigned char c = (unsigned char)*d->at++;
        if (c < 0x20)
            return 0;
        if (c != '\\') {
            *out++ = (char)c;
            continue;
        }
        const char *names = "\"\\/bfnrt", *meanings = "\"\\/\b\f\n\r\t", *found;
        char name = d->at < d->end ? *d->at++ : 0;
        if (name == 'u') {
            long point = json_code(d);
            if (point < 0)
                return 0;
            out = put_utf8(out, point);
        } else if (name && (found = strchr(names, name)))
            *out++ = meanings[found - names];
        else
            return 0;
    }
    if (d->at == d->end)
        return 0;
    d->at++;
    *length = (size_t)(out - *text);
    *out = 0;
    return 1;
}

static char *digits_from(char *at, const char *end) {
    while (at < end && *at >= '0' && *at <= '9')
        at++;
    return at;
}

static double literal_value(char *begin, char *end) {
    char behind = *end;
    *end = 0;
    double value = strtod(begin, NULL);
    *end = behind;
    return value;
}

static int json_number(struct document *d, struct node *node) {
    char *begin = d->at, *digits = begin + (*begin == '-'), *at = digits_from(digits, d->end);
    if (at == digits || (*digits == '0' && at - digits > 1))
        return 0;
    node->kind = JSON_INTEGER;
    for (char *digit = digits; digit < at; digit++) {
        int value = *digit - '0';
        node->integer = node->integer > (INT64_MAX - value) / 10 ? INT64_MAX : node->integer * 10 + value;
    }
    node->integer = *begin == '-' ? -node->integer : node->integer;
    if (at < d->end && *at == '.') {
        char *fraction = at + 1;
        node->kind = JSON_FLOAT;
        at = digits_from(fraction, d->end);
        if (at == fraction)
            return 0;
    }
    if (at < d->end && (*at == 'e' || *at == 'E')) {
        char *exponent = at + 1 + (at + 1 < d->end && (at[1] == '+' || at[1] == '-'));
        node->kind = JSON_FLOAT;
        at = digits_from(exponent, d->end);
        if (at == exponent)
            return 0;
    }
    if (node->kind == JSON_INTEGER && at - digits > MOST_DIGITS)
        return 0;
    node->number = literal_value(begin, at);
    node->text = begin;
    node->length = (size_t)(at - begin);
    d->at = at;
    return 1;
}

static int has_keys_twice(struct document *d, uint32_t object) {
    uint32_t count = d->nodes[object].count, i = 0;
    if (count < 2)
        return 0;
    struct slice *keys = malloc(count * sizeof *keys);
    if (!keys) {
        d->failed = no_memory();
        return 1;
    }
    for (uint32_t n = d->nodes[object].first; n; n = d->nodes[n].next, i++)
        keys[i] = (struct slice){d->nodes[n].key, d->nodes[n].key_length, 0};
    int twice = has_twins(keys, count);
    free(keys);
    return twice;
}

/* The members of a list or object behind its bracket. */
static int json_members(struct document *d, uint32_t self, char closing, int depth) {
    uint32_t last = 0;
    if (json_is(d, closing))
        return 1;
    do {
        const char *key = NULL;
        size_t length = 0;
        if (closing == '}' && !(json_is(d, '"') && json_text(d, &key, &length) && json_is(d, ':')))
            return 0;
        uint32_t member = json_value(d, depth);
        if (!member)
            return 0;
        d->nodes[member].key = key;
        d->nodes[member].key_length = length;
        *(last ? &d->nodes[last].next : &d->nodes[self].first) = member;
        d->nodes[self].count++;
        last = member;
    } while (json_is(d, ','));
    return json_is(d, closing) && !(closing == '}' && has_keys_twice(d, self));
}

static int json_word(struct document *d, uint32_t self, const char *word, enum kind kind) {
    size_t length = strlen(word);
    if ((size_t)(d->end - d->at) < length || memcmp(d->at, word, length))
        return 0;
    d->at += length;
    d->nodes[self].kind = kind;
    return 1;
}

static int json_rest(struct document *d, uint32_t self, int depth) {
    switch (*d->at) {
    case '{':
        d->at++;
        d->nodes[self].kind = JSON_OBJECT;
        return depth && json_members(d, self, '}', depth - 1);
    case '[':
        d->at++;
        d->nodes[self].kind = JSON_LIST;
        return depth && json_members(d, self, ']', depth - 1);
    case '"':
        d->at++;
        d->nodes[self].kind = JSON_TEXT;
        return json_text(d, &d->nodes[self].text, &d->nodes[self].length);
    case 't':
        return json_word(d, self, "true", JSON_TRUE);
    case 'f':
        return json_word(d, self, "false", JSON_FALSE);
    case 'n':
        return json_word(d, self, "null", JSON_NULL);
    default:
        return json_number(d, &d->nodes[self]);
    }
}

/* A value and all in it; 0 for what is none. */
static uint32_t json_value(struct document *d, int depth) {
    json_space(d);
    uint32_t self = d->at < d->end ? json_node(d) : 0;
    return self && json_rest(d, self, depth) ? self : 0;
}

static int is_utf8(const char *text, size_t size) {
    const unsigned char *at = (const unsigned char *)text, *end = at + size;
    while (at < end) {
        unsigned char c = *at++;
        if (c < 0x80)
            continue;
        int more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : 1;
        long point = c & (0x3F >> more);
        if (c < 0xC2 || c > 0xF4 || end - at < more)
            return 0;
        for (int i = 0; i < more; i++, at++) {
            if ((*at & 0xC0) != 0x80)
                return 0;
            point = point << 6 | (*at & 0x3F);
        }
        if ((more == 2 && (point < 0x800 || (point >= 0xD800 && point < 0xE000))) ||
            (more == 3 && (point < 0x10000 || point > 0x10FFFF)))
            return 0;
    }
    return 1;
}

/* Parse d->bytes, which the document then owns; their end must be a zero that is not counted. */
static int parse_document(struct document *d, size_t size) {
    d->at = d->bytes;
    d->end = d->bytes + size;
    locale_t plain = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0), before; /* strtod then takes a point for a point */
    if (!plain)
        return d->failed = no_memory();
    before = uselocale(plain);
    uint32_t root = is_utf8(d->bytes, size) ? json_value(d, DEEPEST) : 0;
    uselocale(before);
    freelocale(plain);
    if (root)
        json_space(d);
    if (d->failed)
        return d->failed;
    if (!root || d->at != d->end)
        return d->failed = fail(d->code, "expected %s to be JSON, got something else; %s", d->name, d->advice);
    return XE_OK;
}

static void free_document(struct document *d) {
    free(d->nodes);
    free(d->bytes);
    d->nodes = NULL;
    d->bytes = NULL;
}

/* ---- Reading documents: closed sets of keys, types and ranges ----

   The first thing that is wrong stays in d->failed; what is read after it is 0, nothing or no members. */

static const int64_t LARGEST_INTEGER = (int64_t)1 << 53;

/* An object whose keys are known, and where it is in its document, for messages. */
struct reader {
    struct document *d;
    const struct node *object;
    const char *where;
};

static const char *node_shown(struct quote *quote, const struct node *node) {
    if (!node || node->kind == JSON_NULL)
        return "nothing";
    if (node->kind == JSON_TEXT || node->kind == JSON_INTEGER || node->kind == JSON_FLOAT)
        return quoted(quote, node->text, node->length);
    return node->kind == JSON_OBJECT ? "an object" : node->kind == JSON_LIST ? "a list" : "true or false";
}

static void refuse(struct reader r, const char *key, const char *wanted, const struct node *got) {
    struct quote quote;
    if (!r.d->failed)
        r.d->failed = fail(r.d->code, "expected %s%s%s as %s, got %s; %s", r.where, *key ? " " : "", key, wanted,
                           node_shown(&quote, got), r.d->advice);
}

static const struct node *first_of(struct reader r) {
    return r.object && r.object->first ? &r.d->nodes[r.object->first] : NULL;
}

static const struct node *next_of(struct reader r, const struct node *node) {
    return node->next ? &r.d->nodes[node->next] : NULL;
}

static int is_text(const char *text, size_t length, const char *wanted) {
    return text && length == strlen(wanted) && !memcmp(text, wanted, length);
}

static const struct node *member(struct reader r, const char *key) {
    const struct node *n = first_of(r);
    while (n && !is_text(n->key, n->key_length, key))
        n = next_of(r, n);
    return n;
}

/* Whether a text is one of some words that are written with spaces between them. */
static int is_word_of(const char *text, size_t length, const char *words) {
    while (*words) {
        size_t size = strcspn(words, " ");
        if (size == length && !memcmp(words, text, size))
            return 1;
        words += size + (words[size] == ' ');
    }
    return 0;
}

/* `keys` and `optional` are words; both NULL leave the set open, for objects whose keys are data. */
static struct reader reader_of(struct document *d, const struct node *value, const char *where, const char *keys,
                               const char *optional) {
    struct reader r = {d, value, where};
    struct quote quote;
    if (!value || value->kind != JSON_OBJECT) {
        refuse(r, "", "an object", value);
        r.object = NULL;
        return r;
    }
    if (!keys)
        return r;
    for (const struct node *n = first_of(r); n && !d->failed; n = next_of(r, n))
        if (!is_word_of(n->key, n->key_length, keys) && !is_word_of(n->key, n->key_length, optional))
            d->failed = fail(d->code, "expected %s with the keys %s%s, got %s as well; %s", where, keys, optional,
                             quoted(&quote, n->key, n->key_length), d->advice);
    for (const char *word = keys; *word && !d->failed;) {
        int size = (int)strcspn(word, " "), found = 0;
        for (const struct node *n = first_of(r); n; n = next_of(r, n))
            found |= n->key_length == (size_t)size && !memcmp(n->key, word, (size_t)size);
        if (!found)
            d->failed = fail(d->code, "expected %s with the key %.*s, got an object without it; %s", where, size, word, d->advice);
        word += size + (word[size] == ' ');
    }
    return r;
}

static struct reader section(struct reader r, const char *key, const char *where, const char *keys, const char *optional) {
    return reader_of(r.d, member(r, key), where, keys, optional);
}

static int is_null(struct reader r, const char *key) {
    const struct node *n = member(r, key);
    return !n || n->kind == JSON_NULL;
}

static int64_t integer_of(struct reader r, const char *key, const struct node *n, int64_t low, int64_t high) {
    char wanted[80];
    if (n && n->kind == JSON_INTEGER && n->integer >= low && n->integer <= high)
        return n->integer;
    snprintf(wanted, sizeof wanted, "an integer from %lld to %lld", (long long)low, (long long)high);
    refuse(r, key, wanted, n);
    return 0;
}

static int64_t integer(struct reader r, const char *key, int64_t low, int64_t high) {
    return integer_of(r, key, member(r, key), low, high);
}

static double number_of(struct reader r, const char *key, const struct node *n, double low, double high) {
    char wanted[80];
    if (n && (n->kind == JSON_INTEGER || n->kind == JSON_FLOAT) && n->number >= low && n->number <= high)
        return n->number;
    snprintf(wanted, sizeof wanted, "a number from %g to %g", low, high);
    refuse(r, key, wanted, n);
    return 0;
}

static int flag(struct reader r, const char *key) {
    const struct node *n = member(r, key);
    if (!n || (n->kind != JSON_TRUE && n->kind != JSON_FALSE))
        refuse(r, key, "true or false", n);
    return n && n->kind == JSON_TRUE;
}

typedef int like(const char *text, size_t length);

/* A text that `like` takes, without zeros in it; "" if it is none. */
static const char *text_of(struct reader r, const char *key, const struct node *n, like *is_like, const char *wanted) {
    if (n && n->kind == JSON_TEXT && is_like(n->text, n->length))
        return n->text;
    refuse(r, key, wanted, n);
    return "";
}

static const char *text_like(struct reader r, const char *key, like *is_like, const char *wanted) {
    return text_of(r, key, member(r, key), is_like, wanted);
}

static const char *text_among(struct reader r, const char *key, const char *words) {
    const struct node *n = member(r, key);
    char wanted[200];
    if (n && n->kind == JSON_TEXT && is_word_of(n->text, n->length, words))
        return n->text;
    snprintf(wanted, sizeof wanted, "one of %s", words);
    refuse(r, key, wanted, n);
    return "";
}

/* A list of at most so many members, as a reader over them. */
static struct reader list(struct reader r, const char *key, uint32_t most) {
    const struct node *n = member(r, key);
    struct reader found = {r.d, n, r.where};
    char wanted[80];
    if (!n || n->kind != JSON_LIST || n->count > most) {
        snprintf(wanted, sizeof wanted, "a list of at most %u members", (unsigned)most);
        refuse(r, key, wanted, n);
        found.object = NULL;
    }
    return found;
}

/* ---- The manifest: manifest.py and manifest_sections.py say what each key means ---- */

enum { SCHEMA = 5, LARGEST_MANIFEST = 8 << 20, MOST_NODES = 1 << 19, LARGEST_CHUNK = 4096, MOST_HEADS = 1 << 16, MOST_COMPILED = 32 };
enum { LONGEST_ROW_NAME = 200 };
enum { MOST_FILES = 64, MOST_BLOCKS = 1 << 14, MOST_TENSORS = 1 << 17, MOST_STOPS = 1024, MOST_AXES = 8, LARGEST_WINDOW = (1 << 20) - 1 };

static const int64_t LARGEST_DIMENSION = (int64_t)1 << 31;
static const double SLSTM_INITIAL_M = -1e30, SMALL_INITIAL_M = -1e4, LARGEST_OFFSET = 1e6;
static const int64_t SMALL_STATE = 64 << 20, STATE_PER_BYTE = 64, SMALL_WIDTH = 1 << 13, WIDTH_PER_ROOT = 16;

struct file_entry {
    const char *name, *sha256;
    int64_t bytes;
};

/* A tensor of the state, without its batch axis: `shape` as snapshots have it; the graph holds the last axis split. */
struct row {
    const char *name, *input, *output;
    int64_t shape[MOST_AXES], splits;
    int rank;
    double initial;
    float *offset; /* the graph holds this less for each place of the last axis; NULL: nothing less */
    size_t size, place;     /* in floats; where it lies in a state */
};

/* Texts lie in `bytes`, the manifest's own. */
struct manifest {
    char *bytes;
    const char *onnxruntime, *source, *graph, *prompt, *input, *output, *tokenizer_kind, *tokenizer_file;
    int64_t width, vocab_size, chunk, bos, stops[MOST_STOPS];
    int all_logits, add_bos;
    int64_t state_bytes;
    size_t stop_count, file_count, row_count;
    struct file_entry files[MOST_FILES];
    struct row *rows;
    xe_sampling sampling;
};

static size_t letters(const char *text, size_t length, const char *also) {
    size_t i = 0;
    while (i < length && text[i] && ((text[i] >= 'a' && text[i] <= 'z') || (text[i] >= 'A' && text[i] <= 'Z') ||
                                     (text[i] >= '0' && text[i] <= '9') || strchr(also, text[i])))
        i++;
    return i;
}

static int like_any(const char *text, size_t length) {
    return strlen(text) == length;
}

static int like_word(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (text[i] < ' ' || text[i] > '~')
            return 0;
    return length >= 1 && length <= 100;
}

static int like_version(const char *text, size_t length) {
    int parts = 0;
    for (size_t i = 0, digits; i < length; i += digits + 1, parts++) {
        for (digits = 0; i + digits < length && text[i + digits] >= '0' && text[i + digits] <= '9';)
            digits++;
        size_t end = i + digits;
        if (digits < 1 || digits > 4 || (end < length && (text[end] != '.' || end + 1 == length)))
            return 0;
    }
    return parts >= 2 && parts <= 4;
}

static int like_hash(const char *text, size_t length) {
    return length == 64 && strspn(text, "0123456789abcdef") == 64;
}

static int like_file(const char *text, size_t length) {
    return length >= 1 && length <= 128 && letters(text, 1, "") == 1 && letters(text, length, "._-") == length;
}

static int like_tensor(const char *text, size_t length) {
    return length >= 1 && length <= LONGEST_ROW_NAME && letters(text, length, "._") == length;
}

static size_t small_letters(const char *text) {
    return strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789");
}

static int like_chip(const char *text, size_t length) {
    return length >= 1 && length <= 20 && small_letters(text) == length;
}

static int like_compiled(const char *text, size_t length) {
    size_t begin = strncmp(text, "model.", 6) ? strncmp(text, "prompt.", 7) ? 0 : 7 : 6;
    size_t middle = begin ? small_letters(text + begin) : 0, at = begin + middle;
    return is_word_of(text, length, "model.mlpackage.zip model.tflite") ||
           (middle && is_word_of(text + at, length - at, ".onnx _qnn.bin .xml .bin"));
}

static int like_block(const char *text, size_t length) {
    return is_word_of(text, length, "mlstm slstm");
}

static int ends_with(const char *text, const char *end) {
    size_t length = strlen(text), size = strlen(end);
    return length >= size && !strcmp(text + length - size, end);
}

static void read_model(struct manifest *m, struct reader r) {
    m->width = integer(r, "width", 1, LARGEST_DIMENSION);
    m->vocab_size = is_null(r, "vocab_size") ? 0 : integer(r, "vocab_size", 1, LARGEST_DIMENSION);
    struct reader blocks = list(r, "blocks", MOST_BLOCKS);
    for (const struct node *n = first_of(blocks); n; n = next_of(blocks, n))
        text_of(r, "blocks", n, like_block, "mlstm or slstm");
    integer(r, "parameters", 0, LARGEST_INTEGER);
    flag(r, "tied");
    if (!is_null(r, "context_length"))
        integer(r, "context_length", 1, LARGEST_INTEGER);
}

static void read_graph(struct manifest *m, struct reader r) {
    m->graph = text_like(r, "file", like_file, "a plain file name");
    text_among(r, "target", "cpu portable web coreml qnn openvino litert genai");
    integer(r, "opset", 1, 1000);
    m->input = text_like(r, "input", like_tensor, "the name of a tensor");
    m->output = text_like(r, "output", like_tensor, "the name of a tensor");
    m->chunk = integer(r, "chunk", 1, LARGEST_CHUNK);
    m->all_logits = flag(r, "all_logits");
    m->prompt = is_null(r, "prompt") ? NULL : text_like(r, "prompt", like_file, "a plain file name");
    if (m->prompt && m->chunk == 1)
        refuse(r, "prompt", "no graph for prompts of one token", member(r, "prompt"));
}

static void read_tokenizer(struct manifest *m, struct reader r) {
    m->tokenizer_kind = text_among(r, "kind", "byte huggingface none");
    m->tokenizer_file = is_null(r, "file") ? NULL : text_like(r, "file", like_file, "a plain file name");
    if (!m->tokenizer_file != !!strcmp(m->tokenizer_kind, "huggingface"))
        refuse(r, "file", "what a tokenizer of this kind needs", member(r, "file"));
}

static void read_special(struct manifest *m, struct reader r) {
    int64_t last = m->vocab_size - 1;
    struct reader stops = list(r, "stop", MOST_STOPS);
    m->bos = is_null(r, "bos") ? -1 : integer(r, "bos", 0, last);
    if (!is_null(r, "pad"))
        integer(r, "pad", 0, last);
    for (const struct node *n = first_of(stops); n; n = next_of(stops, n))
        m->stops[m->stop_count++] = integer_of(r, "stop", n, 0, last);
    m->add_bos = flag(r, "add_bos");
}

static double default_of(struct reader r, const char *key, double value, double low, double high) {
    const struct node *n = member(r, key);
    return n ? number_of(r, key, n, low, high) : value;
}

static void read_sampling(struct manifest *m, struct reader r) {
    xe_sampling *s = &m->sampling;
    s->temperature = default_of(r, "temperature", s->temperature, 0, 1e4);
    s->top_p = default_of(r, "top_p", s->top_p, 0, 1);
    s->min_p = default_of(r, "min_p", s->min_p, 0, 1);
    s->repetition_penalty = default_of(r, "repetition_penalty", s->repetition_penalty, 1e-4, 1e4);
    s->top_k = member(r, "top_k") ? integer(r, "top_k", 0, LARGEST_DIMENSION - 1) : s->top_k;
    s->penalty_window = member(r, "penalty_window") ? integer(r, "penalty_window", 0, LARGEST_WINDOW) : s->penalty_window;
    if (s->top_p == 0 && !r.d->failed)
        refuse(r, "top_p", "a number above 0", member(r, "top_p"));
}

/* Only the type of what the export was told matters. */
static void read_recipe(struct reader r) {
    for (const struct node *n = first_of(r); n; n = next_of(r, n)) {
        int is_number = n->kind == JSON_INTEGER || n->kind == JSON_FLOAT, is_right = n->kind == JSON_TEXT;
        if (is_word_of(n->key, n->key_length, "ahead_of_time all_logits"))
            is_right = n->kind == JSON_TRUE || n->kind == JSON_FALSE;
        else if (is_word_of(n->key, n->key_length, "chunk calibration_tokens block_size embedding_bits head_bits"))
            is_right = n->kind == JSON_INTEGER;
        else if (is_word_of(n->key, n->key_length, "target_mb target_bpw"))
            is_right = is_number;
        else if (is_text(n->key, n->key_length, "keep"))
            is_right = n->kind == JSON_OBJECT;
        if (!is_right)
            refuse(r, "", "values of its types", n);
    }
    if (!member(r, "keep"))
        return;
    struct reader keep = section(r, "keep", "manifest.json quantization recipe keep", NULL, NULL);
    for (const struct node *n = first_of(keep); n; n = next_of(keep, n))
        integer_of(keep, "", n, 2, 32);
}

static void read_quantization(struct reader r) {
    if (!r.object || !r.object->count)
        return;
    read_recipe(section(r, "recipe", "manifest.json quantization recipe", "",
                        "target soc ahead_of_time chunk all_logits quantize method calibrate calibration_tokens block_size "
                        "embedding_bits head_bits target_mb target_bpw keep tokenizer"));
    struct reader tensors = section(r, "tensors", "manifest.json quantization tensors", NULL, NULL);
    if (tensors.object && (!tensors.object->count || tensors.object->count > MOST_TENSORS))
        refuse(tensors, "", "one tensor or more", tensors.object);
    for (const struct node *n = first_of(tensors); n; n = next_of(tensors, n)) {
        struct reader scheme = reader_of(r.d, n, "manifest.json quantization tensors", "bits block_size", "");
        integer(scheme, "bits", 2, 8);
        if (integer(scheme, "block_size", 0, 256))
            integer(scheme, "block_size", 16, 256);
    }
}

static void read_compiled(struct reader r) {
    if (r.object && r.object->count > MOST_COMPILED)
        refuse(r, "", "at most 32 forms", r.object);
    for (const struct node *n = first_of(r); n; n = next_of(r, n)) {
        struct reader entry = reader_of(r.d, n, "manifest.json compiled", "file provider weights prompt", "");
        if (!like_chip(n->key, n->key_length))
            refuse(r, "", "forms by short names", n);
        text_like(entry, "file", like_compiled, "the file of a compiled graph");
        text_among(entry, "provider", "qnn coreml openvino litert genai");
        text_among(entry, "weights", "float32 float16 int8 int4 a16w8");
        if (!is_null(entry, "prompt"))
            text_like(entry, "prompt", like_compiled, "the file of a compiled graph");
    }
}

static void read_files(struct manifest *m, struct reader r) {
    if (r.object && r.object->count > MOST_FILES)
        refuse(r, "", "at most 64 files", r.object);
    for (const struct node *n = first_of(r); n && !r.d->failed; n = next_of(r, n)) {
        struct quote quote;
        struct reader entry = reader_of(r.d, n, "manifest.json files", "bytes sha256", "");
        if (!like_file(n->key, n->key_length) || !strcmp(n->key, "manifest.json")) {
            r.d->failed = fail(r.d->code, "expected plain file names, got %s; do not trust this bundle",
                               quoted(&quote, n->key, n->key_length));
            return;
        }
        m->files[m->file_count++] = (struct file_entry){n->key, text_like(entry, "sha256", like_hash, "a sha256 in hexadecimal"),
                                                        integer(entry, "bytes", 0, LARGEST_INTEGER)};
    }
}

static const struct file_entry *file_of(const struct manifest *m, const char *name, size_t length) {
    for (size_t i = 0; i < m->file_count; i++)
        if (is_text(name, length, m->files[i].name))
            return &m->files[i];
    return NULL;
}

/* Numbers in a tensor of these axes; above LARGEST_INTEGER, which no manifest may ask for, only that it is. */
static int64_t elements(const int64_t *shape, int rank) {
    int64_t product = 1;
    for (int i = 0; i < rank; i++)
        product = product > LARGEST_INTEGER / shape[i] ? LARGEST_INTEGER + 1 : product * shape[i];
    return product;
}

static void read_offset(struct row *row, struct reader r) {
    struct reader offset = list(r, "offset", MOST_HEADS);
    uint32_t count = offset.object ? offset.object->count : 0, i = 0;
    if (!count)
        return;
    if (!ends_with(row->name, ".m") || row->rank < 1 || row->shape[row->rank - 1] != count || row->splits != 1)
        refuse(r, "offset", "as many numbers as a stabilizer has", member(r, "offset"));
    row->offset = calloc(count, sizeof *row->offset);
    if (!row->offset)
        r.d->failed = no_memory();
    for (const struct node *n = first_of(offset); n && row->offset; n = next_of(offset, n))
        row->offset[i++] = (float)number_of(r, "offset", n, -LARGEST_OFFSET, LARGEST_OFFSET);
}

static void read_row(struct row *row, struct reader r, int64_t *bytes) {
    struct reader shape = list(r, "shape", MOST_AXES);
    row->initial = number_of(r, "initial", member(r, "initial"), SLSTM_INITIAL_M, 0);
    for (const struct node *n = first_of(shape); n && !r.d->failed; n = next_of(shape, n))
        row->shape[row->rank++] = integer_of(r, "shape", n, 1, LARGEST_DIMENSION);
    row->splits = integer(r, "head_splits", 1, LARGEST_DIMENSION);
    row->name = text_like(r, "name", like_tensor, "the name of a tensor");
    row->input = text_like(r, "input", like_any, "a name");
    row->output = text_like(r, "output", like_any, "a name");
    if (r.d->failed)
        return;
    if (row->splits != 1 && (row->rank != 3 || row->shape[2] % row->splits))
        refuse(r, "head_splits", "a number that divides the last axis", member(r, "head_splits"));
    read_offset(row, r);
    if (strncmp(row->input, "past.", 5) || strcmp(row->input + 5, row->name))
        refuse(r, "input", "past. and the tensor's name", member(r, "input"));
    if (strncmp(row->output, "present.", 8) || strcmp(row->output + 8, row->name))
        refuse(r, "output", "present. and the tensor's name", member(r, "output"));
    int64_t size = elements(row->shape, row->rank);
    *bytes += size > LARGEST_INTEGER / 4 ? LARGEST_INTEGER : 4 * size;
    *bytes = *bytes > LARGEST_INTEGER ? LARGEST_INTEGER + 1 : *bytes; /* which nothing can be equal to */
    row->size = (size_t)size;
}

/* Of a row X.C, X.n, X.m or X.y: the one of the same block with another letter; NULL if there is none. */
static const struct row *row_beside(const struct manifest *m, struct slice *sorted, const struct row *row, char letter) {
    char name[LONGEST_ROW_NAME + 1];
    size_t length = strlen(row->name);
    if (length < 2 || row->name[length - 2] != '.' || !strchr("Cnmy", row->name[length - 1]))
        return NULL;
    memcpy(name, row->name, length);
    name[length - 1] = letter;
    struct slice *found = find_slice(sorted, m->row_count, name, length);
    return found ? &m->rows[found->place] : NULL;
}

static int has_shape(const struct row *row, int rank, int64_t first, int64_t second, int64_t third) {
    return row->rank == rank && row->shape[0] == first && row->shape[1] == second && (rank < 3 || row->shape[2] == third);
}

/* Whether C (H, dk, dv), n (H, dk, 1) and m (1, H) of a block are one matrix memory; m may be missing. */
static int is_memory(const struct manifest *m, struct slice *sorted, const struct row *c) {
    const struct row *n = row_beside(m, sorted, c, 'n'), *stabilizer = row_beside(m, sorted, c, 'm');
    return c->rank == 3 && n && has_shape(n, 3, c->shape[0], c->shape[1], 1) &&
           (!stabilizer || has_shape(stabilizer, 2, 1, c->shape[0], 0));
}

/* Names once and none that snapshots give to what belongs to a tensor, memories whose rows agree, and every start value 0, but
   for the stabilizer of a cell that has an output y. */
static void check_rows(struct manifest *m, struct reader r) {
    struct slice *names = malloc((m->row_count + 1) * sizeof *names);
    if (!names) {
        r.d->failed = no_memory();
        return;
    }
    for (size_t i = 0; i < m->row_count; i++)
        names[i] = (struct slice){m->rows[i].name, strlen(m->rows[i].name), i};
    if (has_twins(names, m->row_count))
        refuse(r, "tensors", "tensors of distinct names", NULL);
    for (size_t i = 0; i < m->row_count && !r.d->failed; i++) {
        const struct row *row = &m->rows[i];
        int is_slstm = ends_with(row->name, ".m") && row_beside(m, names, row, 'y');
        if (ends_with(row->name, ".scale") || ends_with(row->name, ".offset"))
            refuse(r, row->name, "a name without the end .scale or .offset", NULL);
        if (ends_with(row->name, ".C") && !is_memory(m, names, row))
            refuse(r, row->name, "3 axes with .n and .m of its heads", NULL);
        if (is_slstm ? row->initial != SLSTM_INITIAL_M && row->initial != SMALL_INITIAL_M : row->initial != 0)
            refuse(r, row->name, is_slstm ? "-1e30 at first" : "0 at first", NULL);
    }
    free(names);
}

static void read_state(struct manifest *m, struct reader r) {
    text_among(r, "dtype", "float32");
    struct reader tensors = list(r, "tensors", MOST_TENSORS);
    int64_t bytes = 0;
    size_t count = tensors.object ? tensors.object->count : 0;
    m->rows = calloc(count + 1, sizeof *m->rows);
    if (!m->rows) {
        r.d->failed = no_memory();
        return;
    }
    for (const struct node *n = first_of(tensors); n && !r.d->failed; n = next_of(tensors, n))
        read_row(&m->rows[m->row_count++],
                 reader_of(r.d, n, "manifest.json state tensors", "name input output shape head_splits offset initial", ""), &bytes);
    if (!r.d->failed)
        check_rows(m, r);
    if (integer(r, "bytes_per_session", 0, LARGEST_INTEGER) != bytes)
        refuse(r, "bytes_per_session", "the bytes of its tensors", member(r, "bytes_per_session"));
    m->state_bytes = bytes;
}

static void need_file(struct manifest *m, struct document *d, const char *name, const char *end) {
    char whole[128 + 8];
    snprintf(whole, sizeof whole, "%s%s", name, end);
    if (!d->failed && !file_of(m, whole, strlen(whole)))
        d->failed = fail(d->code, "expected %s among the bundle's files, got a list without it; %s", whole, d->advice);
}

static void check_references(struct manifest *m, struct reader root) {
    struct document *d = root.d;
    struct reader compiled = section(root, "compiled", "manifest.json compiled", NULL, NULL);
    int64_t total = 0, root_wanted = (m->width + WIDTH_PER_ROOT - 1) / WIDTH_PER_ROOT;
    need_file(m, d, m->graph, "");
    need_file(m, d, m->graph, ".data");
    need_file(m, d, "vectors.json", "");
    if (m->tokenizer_file)
        need_file(m, d, m->tokenizer_file, "");
    if (m->prompt)
        need_file(m, d, m->prompt, "");
    for (const struct node *n = first_of(compiled); n && !d->failed; n = next_of(compiled, n)) {
        struct reader entry = {d, n, "manifest.json compiled"};
        need_file(m, d, member(entry, "file")->text, "");
        if (!is_null(entry, "prompt"))
            need_file(m, d, member(entry, "prompt")->text, "");
    }
    for (size_t i = 0; i < m->file_count; i++)
        total += m->files[i].bytes;
    int64_t state = m->state_bytes;
    if (!d->failed && state > SMALL_STATE && (state - 1) / STATE_PER_BYTE >= total)
        d->failed = fail(d->code, "expected a state that fits a bundle of %lld bytes, got one of %lld; do not trust this bundle",
                         (long long)total, (long long)state);
    if (!d->failed && m->width > SMALL_WIDTH && total < root_wanted * root_wanted)
        d->failed = fail(d->code, "expected a width that fits a bundle of %lld bytes, got %lld; do not trust this bundle",
                         (long long)total, (long long)m->width);
}

static void check_schema(struct reader root) {
    const struct node *format = member(root, "format"), *schema = member(root, "schema");
    struct quote first, second;
    if (!root.d->failed && (!format || format->kind != JSON_TEXT || !is_text(format->text, format->length, "xlstm-edge") || !schema ||
                            schema->kind != JSON_INTEGER || schema->integer != SCHEMA))
        root.d->failed = fail(root.d->code, "expected a bundle of format xlstm-edge, schema %d, got %s, %s; export the checkpoint again",
                              SCHEMA, node_shown(&first, format), node_shown(&second, schema));
}

static void read_sections(struct manifest *m, struct document *d) {
    check_schema(reader_of(d, &d->nodes[1], "manifest.json", NULL, NULL));
    if (d->failed)
        return;
    struct reader root = reader_of(d, &d->nodes[1], "manifest.json",
                                   "format schema producer family minimum_runtime source model graph tokenizer special_tokens "
                                   "sampling quantization compiled state files",
                                   "");
    text_like(root, "family", like_word, "a short text");
    text_like(root, "producer", like_word, "a short text");
    m->onnxruntime = text_like(section(root, "minimum_runtime", "manifest.json minimum_runtime", "onnxruntime", ""), "onnxruntime",
                               like_version, "a version");
    m->source = text_like(section(root, "source", "manifest.json source", "sha256", ""), "sha256", like_hash,
                          "a sha256 in hexadecimal");
    read_model(m, section(root, "model", "manifest.json model", "width vocab_size blocks parameters tied context_length", ""));
    read_graph(m, section(root, "graph", "manifest.json graph", "file target opset input output chunk all_logits prompt", ""));
    read_tokenizer(m, section(root, "tokenizer", "manifest.json tokenizer", "kind file", ""));
    read_special(m, section(root, "special_tokens", "manifest.json special_tokens", "bos pad stop add_bos", ""));
    read_sampling(m, section(root, "sampling", "manifest.json sampling", "",
                             "temperature top_k top_p min_p repetition_penalty penalty_window"));
    read_quantization(section(root, "quantization", "manifest.json quantization", "", "recipe tensors"));
    read_compiled(section(root, "compiled", "manifest.json compiled", NULL, NULL));
    read_state(m, section(root, "state", "manifest.json state", "dtype bytes_per_session tensors", ""));
    read_files(m, section(root, "files", "manifest.json files", NULL, NULL));
    if (!d->failed)
        check_references(m, root);
}

/* Of the text of a manifest, which the manifest then owns, with a zero behind it. */
static int parse_manifest(struct manifest *m, char *bytes, size_t size) {
    struct document d = {"manifest.json", "export the bundle again", XE_BUNDLE, 0, bytes, NULL, NULL, NULL, 0, 0, MOST_NODES};
    m->bytes = bytes;
    xe_sampling_defaults(NULL, &m->sampling);
    if (!parse_document(&d, size))
        read_sections(m, &d);
    d.bytes = NULL;
    free_document(&d);
    return d.failed;
}

static void free_manifest(struct manifest *m) {
    for (size_t i = 0; i < m->row_count; i++)
        free(m->rows[i].offset);
    free(m->rows);
    free(m->bytes);
}

static int read_manifest(struct manifest *m, const char *folder) {
    const char *reason = NULL;
    struct quote quote;
    char *path = joined(folder, "manifest.json"), *bytes = NULL;
    size_t size = 0;
    if (!path)
        return no_memory();
    if (size_inside(folder, path, &reason) >= 0)
        bytes = read_whole(path, LARGEST_MANIFEST, &size, &reason);
    free(path);
    if (!bytes)
        return FAIL_FOR(reason, XE_BUNDLE, "expected a bundle folder with manifest.json at %s, got %s; check the path",
                        path_shown(&quote, folder), reason);
    return parse_manifest(m, bytes, size);
}

/* Larger files are hashed only when that is asked for: a start must not wait for gigabytes. */
enum { HASHED_AT_LOAD = 16 << 20 };

static int check_file(const char *folder, const struct file_entry *entry, int hash_all) {
    const char *reason = NULL;
    char hex[65] = "", *path = joined(folder, entry->name);
    if (!path)
        return no_memory();
    int code = XE_OK;
    int64_t size = size_inside(folder, path, &reason);
    if (size < 0)
        code = fail(XE_BUNDLE, "expected the bundle's file %s, got %s; copy the whole folder", entry->name, reason);
    else if (size != entry->bytes)
        code = fail(XE_BUNDLE, "expected %s with %lld bytes, got %lld; the file is damaged, copy it again", entry->name,
                    (long long)entry->bytes, (long long)size);
    else if ((size <= HASHED_AT_LOAD || hash_all) && !hash_file(path, hex, &reason))
        code = FAIL_FOR(reason, XE_BUNDLE, "expected to read %s, got %s; copy the whole folder", entry->name, reason);
    else if (*hex && strcmp(hex, entry->sha256))
        code = fail(XE_BUNDLE, "expected %s with sha256 %.12s..., got %.12s...; the file is damaged, copy it again", entry->name,
                    entry->sha256, hex);
    free(path);
    return code;
}

/* ---- Graph files: graph_file.py says why each of these is asked ---- */

enum { LARGEST_GRAPH = 64 << 20, LONGEST_NAME = 127, MOST_GRAPHS_DEEP = 4 };
/* Field numbers of onnx.proto */
enum { MODEL_GRAPH = 7, MODEL_FUNCTION = 25, GRAPH_NODE = 1, GRAPH_INITIALIZER = 5, TENSOR_EXTERNAL = 13, NODE_OPERATOR = 4 };
enum { NODE_ATTRIBUTE = 5, ATTRIBUTE_NAME = 1, ATTRIBUTE_GRAPH = 6, ATTRIBUTE_INTS = 8, ATTRIBUTE_GRAPHS = 11 };
enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

static const char OPERATORS[] =
    "Abs Add CausalConvWithState Concat Conv CumSum DequantizeLinear Div Erf Exp FusedMatMul Gather GatherBlockQuantized "
    "GatherND Gelu Gemm Identity LayerNormalization LinearAttention Log MatMul MatMulNBits Max MaxPool Mul Neg Pow "
    "QuantizeLinear QuickGelu RMSNormalization ReduceMax ReduceMean Relu Reshape Scan Selu Sigmoid SkipLayerNormalization "
    "SkipSimplifiedLayerNormalization Slice Softplus Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze "
    "BiasGelu Cast Clip FastGelu FusedConv FusedGemm HardSigmoid LeakyRelu NhwcFusedConv NhwcMaxPool ReorderInput "
    "ReorderOutput SimplifiedLayerNormalization Softmax";

/* What the walk over a graph file has found so far. */
struct graph_walk {
    const struct manifest *manifest;
    size_t external; /* names of files */
    uint64_t window; /* tokens back that the shortest MaxPool reaches, itself included */
    int failed;
};

/* A run of bytes; a message's members are read off its front. */
struct span {
    const unsigned char *at, *end;
};

struct field {
    uint64_t number;
    int kind;
    struct span content;
};

static int no_graph(struct graph_walk *walk, const char *got) {
    if (!walk->failed)
        walk->failed = fail(XE_BUNDLE, "expected %s to be an ONNX graph, got %s; export the bundle again", walk->manifest->graph, got);
    return 0;
}

/* A variable-length integer; one of more than 64 bits is the largest. 0 if there is none. */
static int read_varint(struct span *span, uint64_t *value) {
    *value = 0;
    for (int shift = 0; span->at < span->end && shift < 70; shift += 7) {
        unsigned char byte = *span->at++;
        if (shift == 63 && (byte & 0x7E))
            *value = UINT64_MAX;
        else
            *value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80)
            return 1;
    }
    return 0;
}

/* The next member of a message; 0 at its end, and for what is no message. */
static int next_field(struct graph_walk *walk, struct span *span, struct field *field) {
    uint64_t tag, size = 0;
    if (walk->failed || span->at == span->end)
        return 0;
    if (!read_varint(span, &tag) || tag < 8)
        return no_graph(walk, "something that is no ONNX");
    field->number = tag >> 3;
    field->kind = (int)(tag & 7);
    if (field->kind == BYTES && !read_varint(span, &size))
        return no_graph(walk, "something that is no ONNX");
    field->content.at = span->at;
    if (field->kind == VARINT) {
        if (!read_varint(span, &size))
            return no_graph(walk, "something that is no ONNX");
        field->content.end = span->at;
        return 1;
    }
    if (field->kind == FIXED32 || field->kind == FIXED64)
        size = field->kind == FIXED32 ? 4 : 8;
    else if (field->kind != BYTES)
        return no_graph(walk, "something that is no ONNX");
    if (size > (uint64_t)(span->end - span->at))
        return no_graph(walk, "something that is no ONNX");
    field->content.end = span->at += size;
    return 1;
}

static int next_child(struct graph_walk *walk, struct span *span, uint64_t number, struct field *field) {
    while (next_field(walk, span, field))
        if (field->number == number && field->kind == BYTES)
            return 1;
    return 0;
}

static size_t count_word(struct span span, const char *word) {
    size_t length = strlen(word), found = 0;
    while ((size_t)(span.end - span.at) >= length && (span.at = memchr(span.at, *word, (size_t)(span.end - span.at)))) {
        int is_one = (size_t)(span.end - span.at) >= length && !memcmp(span.at, word, length);
        found += (size_t)is_one;
        span.at += is_one ? length : 1;
    }
    return found;
}

static int span_is(struct span span, const char *text) {
    return is_text((const char *)span.at, (size_t)(span.end - span.at), text);
}

/* An entry must hold the key, the value and nothing else, and name a file of the manifest. */
static void walk_external(struct graph_walk *walk, struct span entry) {
    static const char start[] = "\x0a\x08location\x12";
    size_t head = sizeof start - 1, length = (size_t)(entry.end - entry.at);
    struct quote quote;
    if (!count_word(entry, "location"))
        return;
    if (length < head + 1 || memcmp(entry.at, start, head) || entry.at[head] != length - head - 1 || entry.at[head] > LONGEST_NAME) {
        no_graph(walk, "external data in a form of its own");
        return;
    }
    const char *name = (const char *)entry.at + head + 1;
    walk->external++;
    if (!walk->failed && !file_of(walk->manifest, name, entry.at[head]))
        walk->failed = fail(XE_BUNDLE, "expected %s to read only files that are listed, got %s; do not trust this bundle",
                            walk->manifest->graph, quoted(&quote, name, entry.at[head]));
}

static void walk_window(struct graph_walk *walk, struct span attribute) {
    struct field field;
    int names = 0, is_kernel = 0, found = 0;
    uint64_t window = 0;
    for (struct span span = attribute; next_child(walk, &span, ATTRIBUTE_NAME, &field); names++)
        is_kernel = span_is(field.content, "kernel_shape");
    for (struct span span = attribute; next_field(walk, &span, &field) && !found;)
        if (field.number == ATTRIBUTE_INTS && (field.kind == VARINT || field.kind == BYTES) && field.content.at < field.content.end) {
            found = 1;
            if (!read_varint(&field.content, &window))
                no_graph(walk, "something that is no ONNX");
        }
    if (names == 1 && is_kernel && found && window < walk->window)
        walk->window = window;
}

static void walk_graph(struct graph_walk *walk, struct span graph, int depth, int is_top);

static void walk_operator(struct graph_walk *walk, struct span name) {
    size_t length = (size_t)(name.end - name.at);
    struct quote quote;
    length = length > LONGEST_NAME ? LONGEST_NAME : length;
    if (!walk->failed && !is_word_of((const char *)name.at, length, OPERATORS))
        walk->failed = fail(XE_BUNDLE, "expected %s to compute with an xLSTM's operators, got %s; do not trust this bundle",
                            walk->manifest->graph, quoted(&quote, (const char *)name.at, length));
}

static void walk_node(struct graph_walk *walk, struct span node, int depth, int is_top) {
    struct field field, inner;
    int operators = 0, is_pool = 0;
    for (struct span span = node; next_field(walk, &span, &field);) {
        if (field.kind == BYTES && field.number == NODE_OPERATOR) {
            walk_operator(walk, field.content);
            is_pool = span_is(field.content, "MaxPool");
            operators++;
        }
        if (field.kind == BYTES && field.number == NODE_ATTRIBUTE)
            for (struct span part = field.content; next_field(walk, &part, &inner);)
                if (inner.kind == BYTES && (inner.number == ATTRIBUTE_GRAPH || inner.number == ATTRIBUTE_GRAPHS))
                    walk_graph(walk, inner.content, depth - 1, 0);
    }
    for (struct span span = node; is_top && is_pool && operators == 1 && next_child(walk, &span, NODE_ATTRIBUTE, &field);)
        walk_window(walk, field.content);
}

static void walk_graph(struct graph_walk *walk, struct span graph, int depth, int is_top) {
    struct field field, entry;
    if (!depth) {
        no_graph(walk, "graphs in graphs in graphs");
        return;
    }
    while (next_field(walk, &graph, &field)) {
        if (field.kind == BYTES && field.number == GRAPH_NODE)
            walk_node(walk, field.content, depth, is_top);
        if (field.kind == BYTES && field.number == GRAPH_INITIALIZER && is_top && count_word(field.content, "location"))
            for (struct span span = field.content; next_child(walk, &span, TENSOR_EXTERNAL, &entry);)
                walk_external(walk, entry.content);
    }
}

/* A graph reads only listed files beside it, computes with operators of a closed list, and takes calls of a chunk. */
static int check_graph_file(const struct manifest *m, const char *path) {
    struct graph_walk walk = {m, 0, UINT64_MAX, 0};
    struct field field;
    const char *reason = NULL;
    size_t size = 0;
    char *bytes = read_whole(path, LARGEST_GRAPH, &size, &reason);
    if (!bytes)
        return FAIL_FOR(reason, XE_BUNDLE, "expected %s to be an ONNX graph, got %s; export the bundle again", m->graph, reason);
    struct span whole = {(unsigned char *)bytes, (unsigned char *)bytes + size};
    for (struct span span = whole; next_field(&walk, &span, &field);) {
        if (field.number == MODEL_FUNCTION)
            no_graph(&walk, "functions of its own");
        if (field.number == MODEL_GRAPH && field.kind == BYTES)
            walk_graph(&walk, field.content, MOST_GRAPHS_DEEP, 1);
    }
    if (!walk.failed && count_word(whole, "location") != walk.external)
        no_graph(&walk, "external data in a place of its own");
    free(bytes);
    if (!walk.failed && walk.window < (uint64_t)m->chunk + 1)
        return fail(XE_BUNDLE, "expected a chunk that the graph is exact for, got %d; export the bundle again", (int)m->chunk);
    return walk.failed;
}

/* ---- onnxruntime: its append-only table of functions, as much of it as is called ---- */

enum { API_VERSION = 17, TYPE_FLOAT = 1, TYPE_INT64 = 7, ONLY_FATAL = 4, DEVICE_ALLOCATOR = 0, MEMORY_DEFAULT = 0, DEFAULT_SPIN = 20 };

typedef struct OrtStatus ort_status; /* NULL: it went well */
typedef struct OrtEnv ort_env;
typedef struct OrtSession ort_session;
typedef struct OrtSessionOptions ort_options;
typedef struct OrtTypeInfo ort_type;
typedef struct OrtTensorTypeAndShapeInfo ort_tensor;
typedef struct OrtMemoryInfo ort_memory;
typedef struct OrtAllocator ort_allocator;
typedef struct OrtValue ort_value;
typedef struct OrtIoBinding ort_binding;
typedef void (*any_function)(void);

/* Entries that are not called are runs of `skipped`; the numbers in the names are the index of the first in such a run. Enums are
   passed as int, which is what C compilers make of them. */
struct ort_api {
    any_function skipped_0[2];
    const char *(*get_error_message)(const ort_status *);
    ort_status *(*create_env)(int level, const char *name, ort_env **);
    any_function skipped_4[2];
    ort_status *(*disable_telemetry)(const ort_env *);
    ort_status *(*create_session)(const ort_env *, const char *path, const ort_options *, ort_session **);
    any_function skipped_8[2];
    ort_status *(*create_options)(ort_options **);
    any_function skipped_11[8];
    ort_status *(*disable_arena)(ort_options *);
    any_function skipped_20[2];
    ort_status *(*set_log_level)(ort_options *, int level);
    any_function skipped_23;
    ort_status *(*set_threads)(ort_options *, int count);
    ort_status *(*set_outer_threads)(ort_options *, int count);
    any_function skipped_26[4];
    ort_status *(*input_count)(const ort_session *, size_t *);
    ort_status *(*output_count)(const ort_session *, size_t *);
    any_function skipped_32;
    ort_status *(*input_type)(const ort_session *, size_t, ort_type **);
    ort_status *(*output_type)(const ort_session *, size_t, ort_type **);
    any_function skipped_35;
    ort_status *(*input_name)(const ort_session *, size_t, ort_allocator *, char **);
    ort_status *(*output_name)(const ort_session *, size_t, ort_allocator *, char **);
    any_function skipped_38[11];
    ort_status *(*create_tensor)(const ort_memory *, void *data, size_t bytes, const int64_t *shape, size_t rank, int type, ort_value **);
    any_function skipped_50[5];
    ort_status *(*as_tensor)(const ort_type *, const ort_tensor **);
    any_function skipped_56[4];
    ort_status *(*element_type)(const ort_tensor *, int *);
    ort_status *(*rank)(const ort_tensor *, size_t *);
    ort_status *(*shape)(const ort_tensor *, int64_t *, size_t rank);
    any_function skipped_63[6];
    ort_status *(*create_cpu_memory)(int allocator, int type, ort_memory **);
    any_function skipped_70[6];
    ort_status *(*allocator_free)(ort_allocator *, void *);
    any_function skipped_77;
    ort_status *(*default_allocator)(ort_allocator **); /* not to be released */
    any_function skipped_79[13];
    void (*release_env)(ort_env *);
    void (*release_status)(ort_status *);
    void (*release_memory)(ort_memory *);
    void (*release_session)(ort_session *);
    void (*release_value)(ort_value *);
    any_function skipped_97;
    void (*release_type)(ort_type *);
    any_function skipped_99;
    void (*release_options)(ort_options *);
    any_function skipped_101[29];
    ort_status *(*add_config)(ort_options *, const char *key, const char *value);
    any_function skipped_131[2];
    ort_status *(*run_bound)(ort_session *, const void *run_options, const ort_binding *);
    ort_status *(*create_binding)(ort_session *, ort_binding **);
    void (*release_binding)(ort_binding *);
    ort_status *(*bind_input)(ort_binding *, const char *name, const ort_value *);
    ort_status *(*bind_output)(ort_binding *, const char *name, const ort_value *);
};

struct ort_base {
    const struct ort_api *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
};

/* The build fails where an entry is not at its index. */
#define AT(entry, index) \
    typedef char entry##_is_at_##index[offsetof(struct ort_api, entry) == (index) * sizeof(any_function) ? 1 : -1]
AT(get_error_message, 2);
AT(disable_telemetry, 6);
AT(create_session, 7);
AT(create_options, 10);
AT(disable_arena, 19);
AT(set_log_level, 22);
AT(set_threads, 24);
AT(input_count, 30);
AT(input_type, 33);
AT(input_name, 36);
AT(create_tensor, 49);
AT(as_tensor, 55);
AT(element_type, 60);
AT(create_cpu_memory, 69);
AT(allocator_free, 76);
AT(default_allocator, 78);
AT(release_env, 92);
AT(release_value, 96);
AT(release_type, 98);
AT(release_options, 100);
AT(add_config, 130);
AT(run_bound, 133);
AT(bind_output, 137);

struct xe_model_t {
    struct manifest manifest;
    char *folder;
    const struct ort_api *ort;
    const char *ort_version;
    ort_env *env;
    ort_session *graph;
    ort_memory *memory;
    ort_allocator *allocator; /* onnxruntime's own */
    size_t state_floats;      /* of a state as the graph holds it, each tensor on a cache line of its own */
    int64_t chunk;            /* most tokens of one call */
};

/* Whether a call of onnxruntime failed: then the error is told. */
static int failed(const xe_model_t *model, ort_status *status, const char *wanted) {
    struct quote quote;
    if (!status)
        return XE_OK;
    const char *message = model->ort->get_error_message(status);
    fail(XE_BUNDLE, "expected %s, got %s from onnxruntime %s; export the bundle again", wanted,
         quoted(&quote, message, strlen(message)), model->ort_version);
    model->ort->release_status(status);
    return XE_BUNDLE;
}

/* The library stays loaded until the process ends: its threads would not survive being unloaded. */
static void *open_library(const char *path) {
#ifdef __APPLE__
    static const char *const names[] = {"libonnxruntime.1.dylib", "libonnxruntime.dylib"};
#else
    static const char *const names[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
#endif
    void *library = NULL;
    if (!path || !*path)
        path = getenv("XLSTM_EDGE_ONNXRUNTIME");
    if (path && *path)
        return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; !library && i < sizeof names / sizeof *names; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

static int load_onnxruntime(xe_model_t *model, const char *path) {
    const struct ort_base *(*get_base)(void) = NULL;
    struct quote quote;
    setenv("ORT_DISABLE_TELEMETRY", "1", 0); /* asked for when the library is loaded; set to 0 by who wants it */
    void *library = open_library(path), *symbol = library ? dlsym(library, "OrtGetApiBase") : NULL;
    if (!symbol) {
        const char *reason = dlerror();
        reason = reason ? reason : "nothing";
        return fail(XE_DEPENDENCY, "expected onnxruntime's shared library, got %s; name it in XLSTM_EDGE_ONNXRUNTIME",
                    path_shown(&quote, reason));
    }
    memcpy(&get_base, &symbol, sizeof symbol); /* ISO C has no cast from an object to a function */
    const struct ort_base *base = get_base();
    model->ort_version = base->get_version();
    model->ort = base->get_api(API_VERSION);
    if (!model->ort)
        return fail(XE_DEPENDENCY, "expected onnxruntime 1.%d or newer, got %s; install a newer one", API_VERSION, model->ort_version);
    return XE_OK;
}

static int check_version(const xe_model_t *model) {
    char *rest;
    const char *wanted = model->manifest.onnxruntime;
    unsigned long major = strtoul(wanted, &rest, 10), minor = *rest ? strtoul(rest + 1, NULL, 10) : 0;
    unsigned long got = strtoul(model->ort_version, &rest, 10), got_minor = *rest ? strtoul(rest + 1, NULL, 10) : 0;
    if (got < major || (got == major && got_minor < minor))
        return fail(XE_BUNDLE, "expected onnxruntime %s or newer for this bundle, got %s; install a newer one", wanted,
                    model->ort_version);
    return XE_OK;
}

/* The options of opening.py, but for the reuse of memory, which this table has no entry for. */
static int set_options(const xe_model_t *model, ort_options *options, const xe_options *given) {
    const struct ort_api *ort = model->ort;
    char spin[24];
    const char *wanted = "options that onnxruntime takes";
    int microseconds = given->spin > 0 ? given->spin : given->spin < 0 ? 0 : DEFAULT_SPIN;
    snprintf(spin, sizeof spin, "%d", microseconds);
    if (given->threads < 0 || given->threads > 1024 || microseconds > 10000)
        return fail(XE_INPUT, "expected at most 1024 threads and 10000 microseconds of spin, got %d and %d; use 0 for the defaults",
                    given->threads, microseconds);
    int code = given->threads ? failed(model, ort->set_threads(options, given->threads), wanted) : XE_OK;
    code = code ? code : failed(model, ort->set_outer_threads(options, 1), wanted);
    code = code ? code : failed(model, ort->set_log_level(options, ONLY_FATAL), wanted);
    code = code ? code : failed(model, ort->disable_arena(options), wanted);
    code = code ? code : failed(model, ort->add_config(options, "session.intra_op.spin_duration_us", spin), wanted);
    code = code ? code : failed(model, ort->add_config(options, "session.prepack.enable_parallel", "1"), wanted);
    return code ? code : failed(model, ort->add_config(options, "session.disable_quant_qdq", "1"), wanted);
}

static int open_graph(xe_model_t *model, const char *path, const xe_options *given) {
    const struct ort_api *ort = model->ort;
    ort_options *options = NULL;
    int code = failed(model, ort->create_env(ONLY_FATAL, "xlstm-edge", &model->env), "onnxruntime to start");
    const char *telemetry = getenv("ORT_DISABLE_TELEMETRY");
    if (!code && telemetry && strcmp(telemetry, "0"))
        code = failed(model, ort->disable_telemetry(model->env), "onnxruntime to keep silent");
    code = code ? code : failed(model, ort->create_cpu_memory(DEVICE_ALLOCATOR, MEMORY_DEFAULT, &model->memory), "memory");
    code = code ? code : failed(model, ort->default_allocator(&model->allocator), "memory");
    code = code ? code : failed(model, ort->create_options(&options), "options that onnxruntime takes");
    code = code ? code : set_options(model, options, given);
    code = code ? code : failed(model, ort->create_session(model->env, path, options, &model->graph), "a graph that loads");
    if (options)
        ort->release_options(options);
    return code;
}

/* ---- Models ---- */

/* An input or output of the graph; no rank above MOST_AXES + 1 is wanted. */
struct tensor {
    int type;
    size_t rank;
    int64_t shape[MOST_AXES + 1];
};

static int tensor_of(const xe_model_t *model, ort_type *type, struct tensor *tensor) {
    const ort_tensor *info = NULL;
    const char *wanted = "a graph of tensors";
    int code = failed(model, model->ort->as_tensor(type, &info), wanted);
    tensor->type = 0;
    tensor->rank = 0;
    if (!code && info) {
        code = failed(model, model->ort->element_type(info, &tensor->type), wanted);
        code = code ? code : failed(model, model->ort->rank(info, &tensor->rank), wanted);
        if (!code && tensor->rank <= MOST_AXES + 1)
            code = failed(model, model->ort->shape(info, tensor->shape, tensor->rank), wanted);
    }
    model->ort->release_type(type);
    return code;
}

/* Fails for a tensor that is not as the manifest says; -1 in a shape is any number. */
static int check_tensor(const xe_model_t *model, const struct tensor *tensor, const char *name, int is_input) {
    const struct manifest *m = &model->manifest;
    const struct row *row = NULL;
    struct quote quote;
    int is_main = !strcmp(name, is_input ? m->input : m->output);
    for (size_t i = 0; i < m->row_count && !is_main && !row; i++)
        if (!strcmp(name, is_input ? m->rows[i].input : m->rows[i].output))
            row = &m->rows[i];
    size_t rank = row ? 1 + (size_t)row->rank : is_input || !m->all_logits ? 2 : 3;
    int is_right = (row || is_main) && tensor->type == (is_main && is_input ? TYPE_INT64 : TYPE_FLOAT) && tensor->rank == rank;
    if (is_right && is_main && !is_input)
        is_right = tensor->shape[rank - 1] == m->vocab_size;
    if (is_right && is_main && is_input)
        is_right = tensor->shape[1] == -1 || tensor->shape[1] == model->chunk;
    for (int i = 0; is_right && row && is_input && i < row->rank; i++) {
        int64_t size = row->shape[i];
        size = row->splits == 1 || i == 1 ? size : i ? size / row->splits : size * row->splits;
        is_right = tensor->shape[i + 1] == size;
    }
    return is_right ? XE_OK : fail(XE_BUNDLE, "expected inputs and outputs as in the manifest, got another %s; export the bundle again",
                                   quoted(&quote, name, strlen(name)));
}

/* As many inputs and outputs as the manifest has, each one of them; a graph has no name twice. */
static int check_graph(const xe_model_t *model) {
    const struct ort_api *ort = model->ort;
    const char *wanted = "a graph of inputs and outputs";
    int code = XE_OK;
    for (int is_input = 0; is_input < 2 && !code; is_input++) {
        size_t count = 0;
        code = failed(model, (is_input ? ort->input_count : ort->output_count)(model->graph, &count), wanted);
        if (!code && count != model->manifest.row_count + 1)
            code = fail(XE_BUNDLE, "expected %zu inputs and outputs as in the manifest, got %zu; export the bundle again",
                        model->manifest.row_count + 1, count);
        for (size_t i = 0; i < count && !code; i++) {
            ort_type *type = NULL;
            struct tensor tensor;
            char *name = NULL;
            code = failed(model, (is_input ? ort->input_type : ort->output_type)(model->graph, i, &type), wanted);
            code = code ? code : tensor_of(model, type, &tensor);
            code = code ? code : failed(model, (is_input ? ort->input_name : ort->output_name)(model->graph, i, model->allocator, &name), wanted);
            code = code ? code : check_tensor(model, &tensor, name, is_input);
            if (name)
                failed(model, ort->allocator_free(model->allocator, name), wanted);
        }
    }
    return code;
}

static void place_rows(xe_model_t *model) {
    size_t place = 0;
    for (size_t i = 0; i < model->manifest.row_count; i++) {
        model->manifest.rows[i].place = place;
        place += (model->manifest.rows[i].size + 15) / 16 * 16;
    }
    model->state_floats = place;
}

static int load_bundle(xe_model_t *model, const xe_options *options) {
    struct manifest *m = &model->manifest;
    const uint16_t one = 1;
    if (!*(const unsigned char *)&one)
        return fail(XE_DEPENDENCY, "expected a little-endian machine, got another; use the Python runtime");
    int code = read_manifest(m, model->folder);
    for (size_t i = 0; i < m->file_count && !code; i++)
        code = check_file(model->folder, &m->files[i], options->hash_all);
    if (code)
        return code;
    if (!m->vocab_size)
        return fail(XE_BUNDLE, "expected a model that takes tokens, got a stack of float vectors; use the Python runtime");
    if ((uint64_t)m->state_bytes > SIZE_MAX / 32) /* each tensor is rounded up to a cache line, and there are two sets */
        return no_memory();
    model->chunk = m->prompt ? 1 : m->chunk; /* a graph beside one for prompts takes one token */
    place_rows(model);
    char *path = joined(model->folder, m->graph);
    if (!path)
        return no_memory();
    code = check_graph_file(m, path);
    code = code ? code : load_onnxruntime(model, options->onnxruntime);
    code = code ? code : check_version(model);
    code = code ? code : open_graph(model, path, options);
    code = code ? code : check_graph(model);
    free(path);
    return code;
}

int xe_load(const char *folder, const xe_options *options, xe_model_t **model) {
    static const xe_options defaults;
    if (!folder || !model)
        return fail(XE_INPUT, "expected a bundle folder and a place for the model, got NULL; pass both");
    *model = NULL;
    xe_model_t *made = calloc(1, sizeof *made);
    if (!made || !(made->folder = malloc(strlen(folder) + 1))) {
        free(made);
        return no_memory();
    }
    strcpy(made->folder, folder);
    int code = load_bundle(made, options ? options : &defaults);
    if (code)
        xe_free_model(made);
    else
        *model = made;
    return code;
}

void xe_free_model(xe_model_t *model) {
    if (!model)
        return;
    if (model->graph)
        model->ort->release_session(model->graph);
    if (model->memory)
        model->ort->release_memory(model->memory);
    if (model->env)
        model->ort->release_env(model->env);
    free_manifest(&model->manifest);
    free(model->folder);
    free(model);
}

int64_t xe_vocab_size(const xe_model_t *model) {
    return model->manifest.vocab_size;
}

size_t xe_state_bytes(const xe_model_t *model) {
    return (size_t)model->manifest.state_bytes;
}

const int64_t *xe_stop_ids(const xe_model_t *model, size_t *count) {
    *count = model->manifest.stop_count;
    return model->manifest.stops;
}

int64_t xe_bos_id(const xe_model_t *model) {
    return model->manifest.add_bos ? model->manifest.bos : -1;
}

/* ---- Sessions: two sets of state buffers take turns, one is read while the other is written; all is bound once ---- */

struct xe_session_t {
    const xe_model_t *model;
    float *state, *sets[2], *output;
    int64_t *ids;
    ort_value **values; /* of the first set's tensors, then of the second's */
    ort_value *step_ids, *step_output, *chunk_ids, *chunk_output;
    ort_binding *steps[2], *chunks[2]; /* by the set that is read */
    size_t chunk_length;               /* that the chunk's buffers are bound with */
    int current;
    uint64_t tokens;
};

static int make_value(const xe_model_t *model, void *data, const int64_t *shape, size_t rank, int type, ort_value **value) {
    size_t bytes = type == TYPE_INT64 ? sizeof(int64_t) : sizeof(float);
    for (size_t i = 0; i < rank; i++)
        bytes *= (size_t)shape[i];
    return failed(model, model->ort->create_tensor(model->memory, data, bytes, shape, rank, type, value), "memory for a tensor");
}

/* Values of the ids and of the output of a call with so many tokens. */
static int make_ends(xe_session_t *s, size_t length, ort_value **ids, ort_value **output) {
    const struct manifest *m = &s->model->manifest;
    int64_t in[2] = {1, (int64_t)length}, out[3] = {1, (int64_t)length, m->vocab_size};
    if (!m->all_logits)
        out[1] = m->vocab_size;
    int code = make_value(s->model, s->ids, in, 2, TYPE_INT64, ids);
    return code ? code : make_value(s->model, s->output, out, m->all_logits ? 3 : 2, TYPE_FLOAT, output);
}

static int bind_ends(xe_session_t *s, ort_binding *binding, ort_value *ids, ort_value *output) {
    const struct ort_api *ort = s->model->ort;
    int code = failed(s->model, ort->bind_input(binding, s->model->manifest.input, ids), "a graph that takes ids");
    return code ? code : failed(s->model, ort->bind_output(binding, s->model->manifest.output, output), "a graph that gives logits");
}

static int make_binding(xe_session_t *s, int set, ort_value *ids, ort_value *output, ort_binding **binding) {
    const xe_model_t *model = s->model;
    const struct manifest *m = &model->manifest;
    int code = failed(model, model->ort->create_binding(model->graph, binding), "memory for a call");
    for (size_t i = 0; i < m->row_count && !code; i++) {
        ort_value *past = s->values[(size_t)set * m->row_count + i], *present = s->values[(size_t)!set * m->row_count + i];
        code = failed(model, model->ort->bind_input(*binding, m->rows[i].input, past), "a graph that takes its state");
        code = code ? code : failed(model, model->ort->bind_output(*binding, m->rows[i].output, present), "a graph that gives its state");
    }
    return code ? code : bind_ends(s, *binding, ids, output);
}

static int make_state_values(xe_session_t *s) {
    const struct manifest *m = &s->model->manifest;
    int code = XE_OK;
    for (size_t i = 0; i < 2 * m->row_count && !code; i++) {
        const struct row *row = &m->rows[i % m->row_count];
        int64_t shape[MOST_AXES + 1] = {1};
        memcpy(shape + 1, row->shape, sizeof row->shape);
        if (row->splits != 1) {
            shape[1] *= row->splits;
            shape[3] /= row->splits;
        }
        code = make_value(s->model, s->sets[i / m->row_count] + row->place, shape, 1 + (size_t)row->rank, TYPE_FLOAT, &s->values[i]);
    }
    return code;
}

static int fill_session(xe_session_t *s) {
    const struct manifest *m = &s->model->manifest;
    size_t floats = s->model->state_floats, chunk = (size_t)s->model->chunk, rows = m->all_logits ? chunk : 1;
    void *block = NULL;
    if (floats > SIZE_MAX / 8 || (uint64_t)m->vocab_size > SIZE_MAX / sizeof(float) / rows ||
        posix_memalign(&block, 64, 8 * floats + 64))
        return no_memory();
    s->state = s->sets[0] = block;
    s->sets[1] = s->state + floats;
    s->ids = calloc(chunk, sizeof *s->ids);
    s->output = calloc(rows * (size_t)m->vocab_size, sizeof *s->output);
    s->values = calloc(2 * m->row_count + 1, sizeof *s->values);
    if (!s->ids || !s->output || !s->values)
        return no_memory();
    memset(s->state, 0, 8 * floats);
    xe_reset(s);
    int code = make_state_values(s);
    code = code ? code : make_ends(s, 1, &s->step_ids, &s->step_output);
    for (int set = 0; set < 2 && !code; set++)
        code = make_binding(s, set, s->step_ids, s->step_output, &s->steps[set]);
    if (chunk == 1 || code)
        return code;
    s->chunk_length = chunk;
    code = make_ends(s, chunk, &s->chunk_ids, &s->chunk_output);
    for (int set = 0; set < 2 && !code; set++)
        code = make_binding(s, set, s->chunk_ids, s->chunk_output, &s->chunks[set]);
    return code;
}

int xe_session(const xe_model_t *model, xe_session_t **session) {
    if (!model || !session)
        return fail(XE_INPUT, "expected a model and a place for the session, got NULL; pass both");
    *session = NULL;
    xe_session_t *made = calloc(1, sizeof *made);
    if (!made)
        return no_memory();
    made->model = model;
    int code = fill_session(made);
    if (code)
        xe_free_session(made);
    else
        *session = made;
    return code;
}

static void release(const xe_model_t *model, ort_value *value) {
    if (value)
        model->ort->release_value(value);
}

void xe_free_session(xe_session_t *s) {
    if (!s)
        return;
    for (int set = 0; set < 2; set++) {
        if (s->steps[set])
            s->model->ort->release_binding(s->steps[set]);
        if (s->chunks[set])
            s->model->ort->release_binding(s->chunks[set]);
    }
    for (size_t i = 0; s->values && i < 2 * s->model->manifest.row_count; i++)
        release(s->model, s->values[i]);
    release(s->model, s->step_ids);
    release(s->model, s->step_output);
    release(s->model, s->chunk_ids);
    release(s->model, s->chunk_output);
    free(s->values);
    free(s->output);
    free(s->ids);
    free(s->state);
    free(s);
}

/* Bind the chunk's buffers for another number of tokens. */
static int resize_chunk(xe_session_t *s, size_t length) {
    ort_value *ids = NULL, *output = NULL;
    s->chunk_length = 0; /* what fails halfway is done again */
    int code = make_ends(s, length, &ids, &output);
    for (int set = 0; set < 2 && !code; set++)
        code = bind_ends(s, s->chunks[set], ids, output);
    if (code) {
        release(s->model, ids);
        release(s->model, output);
        return code;
    }
    release(s->model, s->chunk_ids);
    release(s->model, s->chunk_output);
    s->chunk_ids = ids;
    s->chunk_output = output;
    s->chunk_length = length;
    return XE_OK;
}

/* One call of the graph for 1 to `chunk` checked ids, then the sets of buffers change places. */
static int run(xe_session_t *s, const int64_t *ids, size_t length, const float **logits) {
    const struct manifest *m = &s->model->manifest;
    int code = length > 1 && length != s->chunk_length ? resize_chunk(s, length) : XE_OK;
    if (code)
        return code;
    memcpy(s->ids, ids, length * sizeof *ids);
    ort_binding *binding = length > 1 ? s->chunks[s->current] : s->steps[s->current];
    code = failed(s->model, s->model->ort->run_bound(s->model->graph, NULL, binding), "a graph that runs");
    if (code)
        return code;
    s->current = !s->current;
    s->tokens += length;
    if (logits)
        *logits = s->output + (m->all_logits ? (length - 1) * (size_t)m->vocab_size : 0);
    return XE_OK;
}

int xe_prefill(xe_session_t *session, const int64_t *ids, size_t count, const float **logits) {
    if (!session || !ids || !count)
        return fail(XE_INPUT, "expected at least one token, got none; begin with a prompt or a bos token");
    int64_t vocab_size = session->model->manifest.vocab_size;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= vocab_size)
            return fail(XE_INPUT, "expected token ids from 0 to %lld, got %lld; use this model's tokenizer",
                        (long long)vocab_size - 1, (long long)ids[i]);
    int code = XE_OK;
    for (size_t done = 0, chunk = (size_t)session->model->chunk; done < count && !code; done += chunk)
        code = run(session, ids + done, count - done < chunk ? count - done : chunk, logits);
    return code;
}

int xe_step(xe_session_t *session, int64_t id, const float **logits) {
    return xe_prefill(session, &id, 1, logits);
}

uint64_t xe_tokens(const xe_session_t *session) {
    return session->tokens;
}

void xe_reset(xe_session_t *session) {
    const struct manifest *m = &session->model->manifest;
    for (size_t i = 0; i < m->row_count; i++)
        for (size_t j = 0; j < m->rows[i].size; j++)
            session->sets[session->current][m->rows[i].place + j] = (float)m->rows[i].initial;
    session->tokens = 0;
}

static void set_state(xe_session_t *session, const float *state, uint64_t tokens) {
    memcpy(session->sets[session->current], state, session->model->state_floats * sizeof *state);
    session->tokens = tokens;
}

int xe_fork(const xe_session_t *session, xe_session_t **branch) {
    if (!session || !branch)
        return fail(XE_INPUT, "expected a session and a place for its branch, got NULL; pass both");
    int code = xe_session(session->model, branch);
    if (!code)
        set_state(*branch, session->sets[session->current], session->tokens);
    return code;
}

/* ---- Snapshots: snapshot.py describes the format ---- */

enum { LARGEST_HEADER = 16 << 20, LONGEST_STORED_NAME = 216 };
/* What a tensor of a file is to a row of the state. LOST: the stabilizer of a matrix memory that has none here; the row is its n. */
enum role { WHOLE, SCALE, OFFSET, LOST, LOST_OFFSET, STORED_ROLES };

struct stored {
    const struct row *row;
    enum role role;
    int is_half;
    uint64_t place, bytes;
    float *numbers;
};

static size_t stored_name(const struct stored *stored, char name[LONGEST_STORED_NAME]) {
    static const char *const ends[STORED_ROLES] = {"", ".scale", ".offset", "", ".offset"};
    size_t length = (size_t)sprintf(name, "%s%s", stored->row->name, ends[stored->role]);
    if (stored->role >= LOST)
        name[strlen(stored->row->name) - 1] = 'm';
    return length;
}

/* Shape with the batch axis. */
static int stored_shape(const struct stored *stored, int64_t shape[MOST_AXES + 1]) {
    const struct row *row = stored->row;
    shape[0] = shape[1] = 1;
    if (stored->role == WHOLE) {
        memcpy(shape + 1, row->shape, sizeof row->shape);
        return 1 + row->rank;
    }
    shape[stored->role == LOST ? 2 : 1] = row->shape[stored->role == OFFSET ? row->rank - 1 : 0];
    return stored->role == LOST ? 3 : 2;
}

static uint64_t stored_bytes(const struct stored *stored) {
    int64_t shape[MOST_AXES + 1];
    int rank = stored_shape(stored, shape);
    return (uint64_t)elements(shape, rank) * (stored->is_half ? 2 : 4);
}

/* Between the two shapes of a tensor: heads split as the graph holds them, whole as snapshots do. */
static void move_heads(const struct row *row, float *to, const float *from, int split) {
    if (row->splits == 1) {
        memcpy(to, from, row->size * sizeof *to);
        return;
    }
    size_t heads = (size_t)row->shape[0], depth = (size_t)row->shape[1], parts = (size_t)row->splits;
    size_t width = (size_t)row->shape[2] / parts;
    for (size_t h = 0; h < heads; h++)
        for (size_t d = 0; d < depth; d++)
            for (size_t p = 0; p < parts; p++) {
                size_t whole = ((h * depth + d) * parts + p) * width, apart = ((h * parts + p) * depth + d) * width;
                memcpy(to + (split ? apart : whole), from + (split ? whole : apart), width * sizeof *to);
            }
}

/* Text that grows. */
struct text {
    char *bytes;
    size_t size, room;
    int failed;
};

PRINTF_LIKE(2, 3) static void add_text(struct text *text, const char *format, ...) {
    va_list arguments;
    if (text->room - text->size < 512) {
        size_t room = 2 * text->room + 1024;
        char *bytes = realloc(text->bytes, room);
        if (!bytes) {
            text->failed = 1;
            return;
        }
        text->bytes = bytes;
        text->room = room;
    }
    va_start(arguments, format);
    text->size += (size_t)vsnprintf(text->bytes + text->size, 512, format, arguments);
    va_end(arguments);
}

static void add_entry(struct text *text, const struct stored *stored, uint64_t *end) {
    int64_t shape[MOST_AXES + 1];
    char name[LONGEST_STORED_NAME];
    int rank = stored_shape(stored, shape);
    stored_name(stored, name);
    add_text(text, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[1", name);
    for (int i = 1; i < rank; i++)
        add_text(text, ",%lld", (long long)shape[i]);
    add_text(text, "],\"data_offsets\":[%llu,", (unsigned long long)*end);
    *end += stored_bytes(stored);
    add_text(text, "%llu]}", (unsigned long long)*end);
}

static struct text make_header(const xe_session_t *session) {
    const struct manifest *m = &session->model->manifest;
    struct text text = {NULL, 0, 0, 0};
    uint64_t end = 0;
    add_text(&text, "{\"__metadata__\":{\"format\":\"xlstm-edge state\",\"version\":\"2\",\"source\":\"%s\",\"tokens\":\"%llu\"}",
             m->source, (unsigned long long)session->tokens);
    for (size_t i = 0; i < m->row_count && !text.failed; i++) {
        add_entry(&text, &(struct stored){&m->rows[i], WHOLE, 0, 0, 0, NULL}, &end);
        if (m->rows[i].offset)
            add_entry(&text, &(struct stored){&m->rows[i], OFFSET, 0, 0, 0, NULL}, &end);
    }
    add_text(&text, "}");
    while (!text.failed && text.size % 8)
        add_text(&text, " ");
    return text;
}

static int write_exactly(int file, const void *bytes, size_t count) {
    const char *at = bytes;
    while (count) {
        ssize_t done = write(file, at, count);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return 0;
        at += done;
        count -= (size_t)done;
    }
    return 1;
}

static int write_state(const xe_session_t *session, int file, const struct text *header) {
    const struct manifest *m = &session->model->manifest;
    unsigned char length[8];
    float *whole = malloc(session->model->state_floats * sizeof *whole + 1);
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)((uint64_t)header->size >> 8 * i);
    int is_done = whole && write_exactly(file, length, 8) && write_exactly(file, header->bytes, header->size);
    for (size_t i = 0; i < m->row_count && is_done; i++) {
        const struct row *row = &m->rows[i];
        move_heads(row, whole, session->sets[session->current] + row->place, 0);
        is_done = write_exactly(file, whole, row->size * sizeof *whole);
        if (is_done && row->offset)
            is_done = write_exactly(file, row->offset, (size_t)row->shape[row->rank - 1] * sizeof *row->offset);
    }
    free(whole);
    return is_done;
}

/* Whether a path still leads to this file: a cleaner may have removed it before it was locked. */
static int is_at(int file, const char *path) {
    struct stat here, there;
    return !fstat(file, &here) && !lstat(path, &there) && here.st_dev == there.st_dev && here.st_ino == there.st_ino;
}

/* A new file beside `target`, named and locked as the Python runtime does: it clears away what a dead process left. */
static int open_partial(const char *target, char *partial, size_t size) {
    static const char end[] = ".xlstm-edge-partial";
    const char *slash = strrchr(target, '/'), *name = slash ? slash + 1 : target;
    struct timespec now;
    for (uint64_t attempt = 0; attempt < 100; attempt++) {
        clock_gettime(CLOCK_REALTIME, &now);
        uint64_t mixed = ((uint64_t)now.tv_sec << 30 ^ (uint64_t)now.tv_nsec ^ (uint64_t)getpid() << 44) + attempt * 0x9E3779B97F4A7C15u;
        snprintf(partial, size, "%.*s.%.40s.%016llx%s", (int)(name - target), target, name, (unsigned long long)mixed, end);
        int file = open(partial, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file < 0 && errno != EEXIST)
            return -1;
        if (file < 0)
            continue;
        flock(file, LOCK_EX | LOCK_NB); /* a file system without locks has no cleaner that would mistake it */
        if (is_at(file, partial))
            return file;
        close(file);
    }
    return -1;
}

enum { MOST_LINKS = 40 };

/* Where a path leads, though nothing may be there yet: the target of a link to nothing. NULL for lack of memory, or a circle. */
static char *led_to(const char *path) {
    char *at = realpath(path, NULL);
    if (at)
        return at;
    at = malloc(strlen(path) + 1);
    if (at)
        strcpy(at, path);
    for (int links = 0, reason = ENOMEM; at; links++) {
        char next[PATH_MAX];
        ssize_t length = readlink(at, next, sizeof next - 1);
        if (length < 0)
            return at;
        next[length] = 0;
        char *slash = strrchr(at, '/'), *made = NULL;
        size_t folder = *next == '/' || !slash ? 0 : (size_t)(slash - at) + 1;
        if (links == MOST_LINKS)
            reason = ELOOP;
        else if ((made = malloc(folder + (size_t)length + 1))) {
            memcpy(made, at, folder);
            strcpy(made + folder, next);
        }
        free(at);
        at = made;
        errno = reason;
    }
    return NULL;
}

static void sync_folder(char *path) {
    char *slash = strrchr(path, '/');
    if (slash)
        slash[slash == path] = 0;
    int folder = open(slash ? path : ".", O_RDONLY | O_CLOEXEC);
    if (folder >= 0) {
        fsync(folder); /* some file systems cannot */
        close(folder);
    }
}

/* Write beside `target` and rename; 0 with errno. A device or pipe would be replaced, not written into: refused. */
static int write_whole(const xe_session_t *session, const struct text *header, const char *target) {
    struct stat found;
    size_t size = strlen(target) + 80;
    char *partial = malloc(size);
    if (!partial || (!stat(target, &found) && !S_ISREG(found.st_mode))) {
        errno = partial ? EEXIST : ENOMEM;
        free(partial);
        return 0;
    }
    int file = open_partial(target, partial, size);
    int is_done = file >= 0 && write_state(session, file, header) && !fsync(file) && !rename(partial, target), reason = errno;
    if (file >= 0) {
        if (!is_done)
            unlink(partial);
        close(file);
    }
    if (is_done)
        sync_folder(partial);
    free(partial);
    errno = reason;
    return is_done;
}

int xe_save(const xe_session_t *session, const char *path) {
    struct quote quote;
    if (!session || !path)
        return fail(XE_INPUT, "expected a session and a file for its state, got NULL; pass both");
    struct text header = make_header(session);
    char *target = led_to(path); /* a link stays one, and what it points to is written */
    int code = XE_OK;
    if (header.failed)
        code = no_memory();
    else if (!target || !write_whole(session, &header, target))
        code = errno == ENOMEM ? no_memory()
                               : fail(XE_STATE, "expected to write a snapshot to %s, got %s; choose another path",
                                      path_shown(&quote, path), errno_shown(errno));
    free(target);
    free(header.bytes);
    return code;
}

/* A snapshot that is being read: its header, the entries of it by name, the rows by name, the tensors that there must be. */
struct snapshot {
    const xe_model_t *model;
    const char *path;
    int file;
    struct document header;
    struct slice *names, *rows; /* `place` is the node, the row */
    struct stored *tensors;
    float *pool; /* numbers of all tensors */
    size_t name_count, tensor_count;
    int64_t begin, size;
    uint64_t tokens;
};

static int bad_snapshot(struct snapshot *s, const char *wanted, const char *got) {
    struct quote quote;
    return fail(XE_STATE, "expected %s at %s, got %s; save it again", wanted, path_shown(&quote, s->path), got);
}

static int read_header(struct snapshot *s) {
    unsigned char start[8];
    uint64_t length = 0;
    const char *reason = NULL;
    s->file = open_regular(s->path, &reason);
    if (s->file < 0)
        return bad_snapshot(s, "a snapshot", reason);
    s->size = size_of(s->file);
    if (s->size < 8 || !read_exactly(s->file, start, 8, 0))
        return bad_snapshot(s, "a snapshot", "a damaged or foreign file");
    for (int i = 0; i < 8; i++)
        length |= (uint64_t)start[i] << 8 * i;
    if (length < 2 || length > LARGEST_HEADER || (int64_t)length > s->size - 8)
        return bad_snapshot(s, "a snapshot", "a damaged or foreign file");
    s->begin = 8 + (int64_t)length;
    s->header = (struct document){"a snapshot's header", "save it again", XE_STATE, 0, malloc((size_t)length + 1), NULL, NULL,
                                  NULL, 0, 0, MOST_NODES};
    if (!s->header.bytes)
        return no_memory();
    s->header.bytes[length] = 0;
    if (!read_exactly(s->file, s->header.bytes, (size_t)length, 8))
        return bad_snapshot(s, "a snapshot", "a file that cannot be read");
    return parse_document(&s->header, (size_t)length);
}

static int like_count(const char *text, size_t length) {
    return length >= 1 && length <= 18 && strspn(text, "0123456789") == length && (*text != '0' || length == 1);
}

/* Whether matrix memories are stored in float16; `failed` of the header if this is another file, or another checkpoint's. */
static int read_metadata(struct snapshot *s, struct reader root) {
    struct reader r = section(root, "__metadata__", "a snapshot's metadata", "format version source tokens", "");
    struct quote quote;
    text_among(r, "version", "2 3");
    const char *source = text_like(r, "source", like_any, "a text"), *format = text_like(r, "format", like_any, "a text");
    s->tokens = strtoull(text_like(r, "tokens", like_count, "a number of tokens"), NULL, 10);
    if (!s->header.failed && strcmp(format, "xlstm-edge state"))
        s->header.failed = bad_snapshot(s, "a snapshot", "another file");
    if (!s->header.failed && strcmp(source, s->model->manifest.source))
        s->header.failed = fail(XE_STATE, "expected a snapshot of this model's checkpoint, got %s of another; load the matching bundle",
                                path_shown(&quote, s->path));
    return !s->header.failed && *member(r, "version")->text == '3';
}

static int list_names(struct snapshot *s, struct reader root) {
    const struct manifest *m = &s->model->manifest;
    s->names = malloc((root.object->count + 1) * sizeof *s->names);
    s->rows = malloc((m->row_count + 1) * sizeof *s->rows);
    s->tensors = malloc((STORED_ROLES * m->row_count + 1) * sizeof *s->tensors);
    if (!s->names || !s->rows || !s->tensors)
        return no_memory();
    for (const struct node *n = first_of(root); n; n = next_of(root, n))
        if (!is_text(n->key, n->key_length, "__metadata__"))
            s->names[s->name_count++] = (struct slice){n->key, n->key_length, (uint64_t)(n - s->header.nodes)};
    for (size_t i = 0; i < m->row_count; i++)
        s->rows[i] = (struct slice){m->rows[i].name, strlen(m->rows[i].name), i};
    sort_slices(s->names, s->name_count, by_text);
    sort_slices(s->rows, m->row_count, by_text);
    return XE_OK;
}

static struct slice *entry_of(struct snapshot *s, const struct stored *stored) {
    char name[LONGEST_STORED_NAME];
    size_t length = stored_name(stored, name);
    return find_slice(s->names, s->name_count, name, length);
}

/* Of a row of a matrix memory: its row of this letter; NULL where there is none, as of an sLSTM cell. */
static const struct row *memory_row(struct snapshot *s, const struct row *row, char letter) {
    const struct manifest *m = &s->model->manifest;
    return !ends_with(row->name, ".y") && row_beside(m, s->rows, row, 'C') ? row_beside(m, s->rows, row, letter) : NULL;
}

static void add_tensor(struct snapshot *s, const struct row *row, enum role role, int is_half) {
    s->tensors[s->tensor_count++] = (struct stored){row, role, is_half, 0, 0, NULL};
}

/* Whether the file's tensors are those of this model; stabilizers may come with what they are short of. In the other form matrix
   memories have a stabilizer where they have none here, and none where they have one. */
static int list_tensors(struct snapshot *s, int is_half, int is_other) {
    const struct manifest *m = &s->model->manifest;
    int is_all = 1;
    s->tensor_count = 0;
    for (size_t i = 0; i < m->row_count; i++) {
        const struct row *row = &m->rows[i];
        struct stored offset = {row, OFFSET, 0, 0, 0, NULL}, lost_offset = {row, LOST_OFFSET, 0, 0, 0, NULL};
        int in_memory = is_other && memory_row(s, row, 'C'), scaled = is_half && ends_with(row->name, ".C");
        if (in_memory && ends_with(row->name, ".m"))
            continue;
        add_tensor(s, row, WHOLE, scaled);
        if (scaled)
            add_tensor(s, row, SCALE, 0);
        if (ends_with(row->name, ".m") && row->rank && entry_of(s, &offset))
            add_tensor(s, row, OFFSET, 0);
        if (in_memory && ends_with(row->name, ".n") && !memory_row(s, row, 'm')) {
            add_tensor(s, row, LOST, 0);
            if (entry_of(s, &lost_offset))
                add_tensor(s, row, LOST_OFFSET, 0);
        }
    }
    for (size_t i = 0; i < s->tensor_count; i++)
        is_all &= entry_of(s, &s->tensors[i]) != NULL;
    return is_all && s->tensor_count == s->name_count;
}

/* Type, shape and size of an entry as they must be; where it begins. */
static void read_place(struct snapshot *s, struct stored *stored, const struct node *node) {
    struct reader r = reader_of(&s->header, node, "a tensor of a snapshot", "dtype shape data_offsets", "");
    struct reader offsets = list(r, "data_offsets", 2), shape = list(r, "shape", MOST_AXES);
    int64_t wanted[MOST_AXES + 1], ends[2] = {0, 0};
    int rank = stored_shape(stored, wanted), i = 0, same;
    text_among(r, "dtype", stored->is_half ? "F16" : "F32");
    for (const struct node *n = first_of(offsets); n; n = next_of(offsets, n))
        ends[i++] = integer_of(r, "data_offsets", n, 0, LARGEST_INTEGER);
    same = i == 2 && shape.object && shape.object->count == (uint32_t)rank;
    i = 0;
    for (const struct node *n = first_of(shape); n && same; n = next_of(shape, n), i++)
        same = integer_of(r, "shape", n, 0, LARGEST_INTEGER) == wanted[i];
    stored->place = (uint64_t)ends[0];
    stored->bytes = stored_bytes(stored);
    if (!same || ends[1] < ends[0] || (uint64_t)(ends[1] - ends[0]) != stored->bytes)
        refuse(r, "shape", "that of this model", member(r, "shape"));
}

/* Exactly the tensors of this model, side by side, and nothing behind them. */
static int check_places(struct snapshot *s) {
    uint64_t end = 0;
    for (size_t i = 0; i < s->tensor_count; i++) {
        read_place(s, &s->tensors[i], &s->header.nodes[entry_of(s, &s->tensors[i])->place]);
        if (s->header.failed)
            return s->header.failed;
    }
    for (size_t i = 0; i < s->tensor_count; i++)
        s->names[i] = (struct slice){NULL, (size_t)s->tensors[i].bytes, s->tensors[i].place};
    sort_slices(s->names, s->tensor_count, by_place);
    for (size_t i = 0; i < s->tensor_count; end += s->names[i++].length)
        if (s->names[i].place != end)
            return bad_snapshot(s, "tensors side by side", "a gap or overlap");
    if ((uint64_t)(s->size - s->begin) != end)
        return bad_snapshot(s, "a snapshot", "a file of another size");
    return XE_OK;
}

static float from_half(uint16_t half) {
    int exponent = half >> 10 & 0x1F, mantissa = half & 0x3FF;
    float value = exponent == 0x1F ? (mantissa ? NAN : INFINITY)
                  : exponent       ? ldexpf((float)(mantissa + 1024), exponent - 25)
                                   : ldexpf((float)mantissa, -24);
    return half & 0x8000 ? -value : value;
}

/* Every stored tensor as floats, scaled and in the pool. */
static int read_tensors(struct snapshot *s) {
    uint64_t total = 0;
    for (size_t i = 0; i < s->tensor_count; i++)
        total += s->tensors[i].bytes / (s->tensors[i].is_half ? 2 : 4);
    float *at = s->pool = malloc((size_t)total * sizeof *at + 1);
    if (!at)
        return no_memory();
    for (size_t i = 0; i < s->tensor_count; i++) {
        struct stored *stored = &s->tensors[i];
        size_t count = (size_t)stored->bytes / (stored->is_half ? 2 : 4);
        if (!read_exactly(s->file, at, (size_t)stored->bytes, s->begin + (int64_t)stored->place))
            return bad_snapshot(s, "a snapshot", "a file that cannot be read");
        for (size_t j = count; stored->is_half && j-- > 0;) { /* from the end, in place */
            uint16_t half;
            memcpy(&half, (const char *)at + 2 * j, 2);
            at[j] = from_half(half);
        }
        stored->numbers = at;
        at += count;
        if (stored->role == SCALE) /* of the tensor before */
            for (size_t j = 0; j < stored[-1].row->size; j++)
                stored[-1].numbers[j] *= stored->numbers[j / (stored[-1].row->size / count)];
    }
    return XE_OK;
}

/* What is stored of a row in some role; NULL for nothing. The tensors are in the order of the rows. */
static const float *numbers_of(const struct snapshot *s, const struct row *row, enum role role) {
    size_t low = 0, high = s->tensor_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (s->tensors[middle].row < row)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < s->tensor_count && s->tensors[low].row == row; low++)
        if (s->tensors[low].role == role)
            return s->tensors[low].numbers;
    return NULL;
}

/* In the other form: the logarithm of what a head of a matrix memory is multiplied with to come from the file's form to ours. The
   file's stabilizer where it has one; else what brings the largest number of n to 1. */
static float head_exponent(const struct snapshot *s, const struct row *n, size_t head) {
    const float *lost = numbers_of(s, n, LOST), *offset = numbers_of(s, n, LOST_OFFSET), *numbers = numbers_of(s, n, WHOLE);
    size_t size = n->size / (size_t)n->shape[0];
    float largest = 1;
    if (lost)
        return offset ? lost[head] + offset[head] : lost[head];
    for (size_t i = head * size; i < (head + 1) * size; i++)
        largest = fabsf(numbers[i]) > largest ? fabsf(numbers[i]) : largest;
    return -logf(largest);
}

/* A row as users see it, without what the graph holds less of it; `whole` has room for it. */
static void fill_row(struct snapshot *s, const struct row *row, int is_other, float *whole) {
    const float *numbers = numbers_of(s, row, WHOLE), *offset = numbers_of(s, row, OFFSET);
    const struct row *n = is_other ? memory_row(s, row, 'n') : NULL;
    size_t last = row->rank ? (size_t)row->shape[row->rank - 1] : 1;
    if (!numbers) { /* a stabilizer that the file has not */
        for (size_t i = 0; i < row->size; i++)
            whole[i] = -head_exponent(s, n, i);
        return;
    }
    for (size_t i = 0; i < row->size; i++)
        whole[i] = offset ? numbers[i] + offset[i % last] : numbers[i];
    for (size_t head = 0, size = n ? row->size / (size_t)row->shape[0] : 0; size && head < (size_t)row->shape[0]; head++) {
        float factor = expf(head_exponent(s, n, head));
        for (size_t i = head * size; i < (head + 1) * size; i++)
            whole[i] *= factor;
    }
}

/* The same as the graph holds it. */
static int hold_row(struct snapshot *s, const struct row *row, int is_other, float *whole) {
    const float *numbers = numbers_of(s, row, WHOLE), *offset = numbers_of(s, row, OFFSET);
    size_t last = row->rank ? (size_t)row->shape[row->rank - 1] : 1;
    if (offset && row->offset && !memcmp(offset, row->offset, last * sizeof *offset)) /* no digit is lost */
        memcpy(whole, numbers, row->size * sizeof *whole);
    else {
        fill_row(s, row, is_other, whole);
        for (size_t i = 0; i < row->size; i++) {
            whole[i] = row->offset ? whole[i] - row->offset[i % last] : whole[i];
            if (row->initial == SMALL_INITIAL_M && row->splits == 1 && whole[i] < (float)row->initial)
                whole[i] = (float)row->initial;
        }
    }
    for (size_t i = 0; i < row->size; i++)
        if (!isfinite(whole[i]))
            return bad_snapshot(s, "a finite state", "NaN or infinity");
    return XE_OK;
}

static int read_state_data(struct snapshot *s, int is_other, float *state, float *whole) {
    const struct manifest *m = &s->model->manifest;
    int code = read_tensors(s);
    for (size_t i = 0; i < m->row_count && !code; i++) {
        code = hold_row(s, &m->rows[i], is_other, whole);
        if (!code)
            move_heads(&m->rows[i], state + m->rows[i].place, whole, 1);
    }
    return code;
}

static int read_snapshot(struct snapshot *s, float **state) {
    int code = read_header(s), is_other = 0;
    if (code)
        return code;
    struct reader root = reader_of(&s->header, &s->header.nodes[1], "a snapshot's header", NULL, NULL);
    int is_half = s->header.failed ? 0 : read_metadata(s, root);
    code = s->header.failed ? s->header.failed : list_names(s, root);
    if (code)
        return code;
    if (!list_tensors(s, is_half, 0)) {
        is_other = list_tensors(s, is_half, 1);
        if (!is_other)
            return bad_snapshot(s, "the state tensors of this model", "others");
    }
    code = check_places(s);
    if (code)
        return code;
    float *whole = malloc(s->model->state_floats * sizeof *whole + 1);
    *state = calloc(s->model->state_floats + 1, sizeof **state);
    code = whole && *state ? read_state_data(s, is_other, *state, whole) : no_memory();
    free(whole);
    return code;
}

int xe_restore(xe_session_t *session, const char *path) {
    if (!session || !path)
        return fail(XE_INPUT, "expected a session and a file with a state, got NULL; pass both");
    struct snapshot snapshot;
    float *state = NULL;
    memset(&snapshot, 0, sizeof snapshot);
    snapshot.model = session->model;
    snapshot.path = path;
    snapshot.file = -1;
    int code = read_snapshot(&snapshot, &state);
    if (!code)
        set_state(session, state, snapshot.tokens);
    if (snapshot.file >= 0)
        close(snapshot.file);
    free_document(&snapshot.header);
    free(snapshot.names);
    free(snapshot.rows);
    free(snapshot.tensors);
    free(snapshot.pool);
    free(state);
    return code;
}

/* ---- Sampling: sampling.py and exact_math.py specify every step; only operations that round the same everywhere ---- */

static const uint64_t ONE = (uint64_t)1 << 32; /* the weight of 0 */

struct xe_sampler_t {
    xe_sampling options;
    size_t vocab_size;
    uint64_t random;
    float *adjusted, *bias;        /* bias: NULL for none */
    uint32_t *order, *counts;      /* candidates; how often each id is in the window */
    uint64_t *weights;
    unsigned char *kept;
    uint32_t *window;
    size_t window_size, window_used, window_next;
};

static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* The high half of the product of 64 bits and 64 bits. */
static uint64_t high_product(uint64_t a, uint64_t b) {
    uint64_t low = (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF), left = (a >> 32) * (b & 0xFFFFFFFF), right = (a & 0xFFFFFFFF) * (b >> 32);
    uint64_t middle = (low >> 32) + (left & 0xFFFFFFFF) + (right & 0xFFFFFFFF);
    return (a >> 32) * (b >> 32) + (left >> 32) + (right >> 32) + (middle >> 32);
}

static uint64_t weight(double x) {
    static const double table[16] = {1.0, 1.0442737824274138, 1.0905077326652577, 1.1387886347566916, 1.189207115002721, 1.241857812073484,
                                     1.2968395546510096, 1.3542555469368927, 1.4142135623730951, 1.4768261459394993, 1.5422108254079407,
                                     1.6104903319492543, 1.681792830507429, 1.7562521603732995, 1.8340080864093424, 1.9152065613971474};
    if (!(x >= -24.0))
        return 0;
    double k = floor(x * 23.083120654223414 + 0.5);
    double r = x - k * 0.04332169878499658;
    double p = (((r * (1.0 / 24) + 1.0 / 6) * r + 0.5) * r + 1) * r + 1;
    int whole = (int)k, step = whole & 15;
    uint64_t bits = (uint64_t)((whole - step) / 16 + 32 + 1023) << 52; /* of a power of two */
    double power;
    memcpy(&power, &bits, sizeof power);
    return (uint64_t)(p * table[step] * power);
}

/* Whether this build rounds every operation by itself: with a fused multiply-add the seed of Python would give other ids. */
static int rounds_each_operation(void) {
    volatile double a = 1 + 0x1p-27, b = 1 - 0x1p-27, c = -1;
    double sum = a * b + c;
    return sum == 0;
}

void xe_sampling_defaults(const xe_model_t *model, xe_sampling *options) {
    if (model) {
        *options = model->manifest.sampling;
        return;
    }
    memset(options, 0, sizeof *options);
    options->top_p = options->repetition_penalty = 1;
    options->penalty_window = 64;
}

static int check_number(const char *name, double value, double low, double high) {
    if (value >= low && value <= high)
        return XE_OK;
    return fail(XE_INPUT, "expected %s from %g to %g, got %g; correct it", name, low, high, value);
}

static int check_sampling(const xe_sampling *o) {
    int code = check_number("temperature", o->temperature, 0, 1e4);
    code = code ? code : check_number("top_p", o->top_p, 0, 1);
    code = code ? code : check_number("min_p", o->min_p, 0, 1);
    code = code ? code : check_number("repetition_penalty", o->repetition_penalty, 1e-4, 1e4);
    code = code ? code : check_number("presence_penalty", o->presence_penalty, -1e4, 1e4);
    code = code ? code : check_number("frequency_penalty", o->frequency_penalty, -1e4, 1e4);
    code = code ? code : check_number("top_k", (double)o->top_k, 0, (double)LARGEST_DIMENSION - 1);
    code = code ? code : check_number("penalty_window", (double)o->penalty_window, 0, LARGEST_WINDOW);
    if (!code && o->top_p == 0)
        return fail(XE_INPUT, "expected top_p above 0, got 0; use temperature 0 for greedy decoding");
    if (!code && ((o->bias_count && (!o->bias_ids || !o->bias_values)) || (o->banned_count && !o->banned)))
        return fail(XE_INPUT, "expected ids and biases, got NULL; pass them, or a count of 0");
    return code;
}

static int penalizes(const xe_sampling *o) {
    return o->repetition_penalty != 1 || o->presence_penalty != 0 || o->frequency_penalty != 0;
}

static int set_bias(xe_sampler_t *s, int64_t id, float bias) {
    if (id < 0 || (uint64_t)id >= s->vocab_size)
        return fail(XE_INPUT, "expected ids from 0 to %zu in bias_ids and banned, got %lld; remove it", s->vocab_size - 1, (long long)id);
    if (!(fabsf(bias) <= 1e6f || bias == -INFINITY))
        return fail(XE_INPUT, "expected biases of at most 1e6, or -INFINITY, got %g; correct it", (double)bias);
    s->bias[id] = bias;
    return XE_OK;
}

static int fill_bias(xe_sampler_t *s, const xe_sampling *o) {
    size_t allowed = 0;
    int code = XE_OK;
    for (size_t i = 0; i < o->bias_count && !code; i++)
        code = set_bias(s, o->bias_ids[i], o->bias_values[i]);
    for (size_t i = 0; i < o->banned_count && !code; i++)
        code = set_bias(s, o->banned[i], -INFINITY);
    for (size_t i = 0; i < s->vocab_size && !code; i++)
        allowed += s->bias[i] != -INFINITY;
    if (!code && !allowed)
        return fail(XE_INPUT, "expected some of %zu ids to be allowed, got a ban of all; allow one", s->vocab_size);
    return code;
}

/* One token more, and the oldest one out of a full window. */
static void push_window(xe_sampler_t *s, uint32_t id) {
    if (!s->window_size)
        return;
    if (s->window_used == s->window_size)
        s->counts[s->window[s->window_next]]--;
    else
        s->window_used++;
    s->window[s->window_next] = id;
    s->window_next = (s->window_next + 1) % s->window_size;
    s->counts[id]++;
}

static int fill_sampler(xe_sampler_t *s, const xe_sampling *o, const int64_t *prompt, size_t count) {
    size_t size = s->vocab_size;
    int biased = o->bias_count || o->banned_count;
    s->window_size = penalizes(o) ? (size_t)o->penalty_window : 0;
    s->options = *o;
    s->random = o->seed;
    s->adjusted = biased || s->window_size ? malloc(size * sizeof *s->adjusted) : NULL;
    s->bias = biased ? calloc(size, sizeof *s->bias) : NULL;
    s->counts = s->window_size ? calloc(size, sizeof *s->counts) : NULL;
    s->window = s->window_size ? calloc(s->window_size, sizeof *s->window) : NULL;
    s->order = malloc(size * sizeof *s->order);
    s->weights = malloc(size * sizeof *s->weights);
    s->kept = malloc(size);
    if (((biased || s->window_size) && !s->adjusted) || (biased && !s->bias) || (s->window_size && (!s->counts || !s->window)) ||
        !s->order || !s->weights || !s->kept)
        return no_memory();
    for (size_t i = 0; i < count; i++)
        if (prompt[i] < 0 || (uint64_t)prompt[i] >= size)
            return fail(XE_INPUT, "expected token ids from 0 to %zu, got %lld; use this model's tokenizer", size - 1, (long long)prompt[i]);
    for (size_t i = 0; i < count; i++)
        push_window(s, (uint32_t)prompt[i]);
    return biased ? fill_bias(s, o) : XE_OK;
}

int xe_sampler(int64_t vocab_size, const xe_sampling *options, const int64_t *prompt, size_t count, xe_sampler_t **sampler) {
    if (!options || !sampler || (count && !prompt) || vocab_size < 1 || vocab_size > LARGEST_DIMENSION ||
        (uint64_t)vocab_size > SIZE_MAX / 8)
        return fail(XE_INPUT, "expected a vocabulary, options and a place for the sampler, got less; pass all of them");
    *sampler = NULL;
    if (!rounds_each_operation())
        return fail(XE_DEPENDENCY, "expected a build that rounds each operation, got fused ones; compile with -ffp-contract=off");
    int code = check_sampling(options);
    if (code)
        return code;
    xe_sampler_t *made = calloc(1, sizeof *made);
    if (!made)
        return no_memory();
    made->vocab_size = (size_t)vocab_size;
    code = fill_sampler(made, options, prompt, count);
    if (code)
        xe_free_sampler(made);
    else
        *sampler = made;
    return code;
}

void xe_free_sampler(xe_sampler_t *s) {
    if (!s)
        return;
    free(s->adjusted);
    free(s->bias);
    free(s->counts);
    free(s->window);
    free(s->order);
    free(s->weights);
    free(s->kept);
    free(s);
}

/* The first of the largest logits, in `best`; fails for NaN, infinity or nothing but bans. */
static int find_largest(const float *z, size_t count, size_t *best) {
    int is_number = 1;
    *best = 0;
    for (size_t i = 0; i < count; i++) {
        is_number &= z[i] == z[i];
        *best = z[i] > z[*best] ? i : *best;
    }
    if (!is_number || !isfinite(z[*best]))
        return fail(XE_VERIFICATION, "expected finite logits, got %g as their largest; the model or its input is broken",
                    is_number ? (double)z[*best] : (double)NAN);
    return XE_OK;
}

/* Step 1 of sampling.py: penalties, then biases. */
static const float *adjust(xe_sampler_t *s, const float *logits) {
    const xe_sampling *o = &s->options;
    if (!s->adjusted)
        return logits;
    memcpy(s->adjusted, logits, s->vocab_size * sizeof *logits);
    for (size_t i = 0; s->window_used && i < s->vocab_size; i++)
        if (s->counts[i]) {
            double y = s->adjusted[i];
            y = y > 0 ? y / o->repetition_penalty : y * o->repetition_penalty;
            s->adjusted[i] = (float)(y - (o->presence_penalty + o->frequency_penalty * s->counts[i]));
        }
    for (size_t i = 0; s->bias && i < s->vocab_size; i++)
        s->adjusted[i] = s->adjusted[i] + s->bias[i];
    return s->adjusted;
}

/* Whether id a comes before id b: larger logits first, of equal ones the lower id. */
static int is_before(const float *z, uint32_t a, uint32_t b) {
    return z[a] > z[b] || (z[a] == z[b] && a < b);
}

static void sift_ids(const float *z, uint32_t *ids, size_t root, size_t count) {
    for (size_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && is_before(z, ids[child + 1], ids[child]))
            child++;
        if (!is_before(z, ids[child], ids[root]))
            return;
        uint32_t held = ids[root];
        ids[root] = ids[child];
        ids[child] = held;
    }
}

/* Steps 3 and 5: in `kept`, the candidates of top-k and of those the fewest that make up top_p. Work for those alone: the ids are a
   heap, from which the next one in order is taken. */
static void keep_first(xe_sampler_t *s, const float *z, double largest) {
    size_t count = s->vocab_size, most = s->options.top_k && (uint64_t)s->options.top_k < count ? (size_t)s->options.top_k : count;
    uint32_t *ids = s->order;
    uint64_t sum = 0, running = 0;
    memset(s->kept, 0, count);
    for (size_t i = 0; i < count; i++)
        ids[i] = (uint32_t)i;
    for (size_t root = count / 2; root-- > 0;)
        sift_ids(z, ids, root, count);
    for (size_t i = 0, end = count; i < most && most < count; i++) { /* taken to the end of the array, in order from there */
        uint32_t first = ids[0];
        ids[0] = ids[--end];
        ids[end] = first;
        sift_ids(z, ids, 0, end);
        sum += weight(z[first] - largest);
        s->kept[first] = 1;
    }
    if (s->options.top_p == 1)
        return;
    for (size_t i = 0; most == count && i < count; i++)
        sum += weight(z[i] - largest);
    double wanted = s->options.top_p * (double)sum;
    memset(s->kept, 0, count);
    for (size_t i = 0, end = count; i < most && (!i || (double)running < wanted); i++) {
        uint32_t first = most < count ? ids[count - 1 - i] : ids[0];
        if (most == count) {
            ids[0] = ids[--end];
            sift_ids(z, ids, 0, end);
        }
        running += weight(z[first] - largest);
        s->kept[first] = 1;
    }
}

/* Steps 3 to 8. */
static size_t draw(xe_sampler_t *s, const float *z, double largest) {
    const xe_sampling *o = &s->options;
    size_t count = s->vocab_size, i = 0;
    double least = o->min_p * (double)ONE;
    int some = (o->top_k && (uint64_t)o->top_k < count) || o->top_p < 1;
    uint64_t sum = 0, running = 0;
    if (some)
        keep_first(s, z, largest);
    for (i = 0; i < count; i++) {
        uint64_t share = 0;
        if (!some || s->kept[i]) {
            share = o->min_p > 0 || o->temperature == 1 ? weight(z[i] - largest) : 0;
            if (o->min_p > 0 && (double)share < least)
                share = 0;
            else if (o->temperature != 1)
                share = weight((z[i] - largest) / o->temperature);
        }
        sum += s->weights[i] = share;
    }
    uint64_t chosen = high_product(next_random(&s->random), sum);
    for (i = 0; (running += s->weights[i]) <= chosen;)
        i++;
    return i;
}

int xe_sample(xe_sampler_t *sampler, const float *logits, int64_t *id) {
    size_t best = 0;
    if (!sampler || !logits || !id)
        return fail(XE_INPUT, "expected a sampler, logits and a place for the id, got NULL; pass all of them");
    int code = find_largest(logits, sampler->vocab_size, &best);
    if (code)
        return code;
    const float *z = adjust(sampler, logits);
    code = z == logits ? XE_OK : find_largest(z, sampler->vocab_size, &best);
    if (code)
        return code;
    if (sampler->options.temperature > 0)
        best = draw(sampler, z, z[best]);
    if (sampler->window_size)
        push_window(sampler, (uint32_t)best);
    *id = (int64_t)best;
    return XE_OK;
}

/* ---- Decoding: ids -> bytes, for tokenizers whose tokens are bytes ---- */

enum { LARGEST_TOKENIZER = 64 << 20, MOST_TOKENIZER_NODES = 1 << 21 };

/* The tokens that have bytes, by id; ids between them have none. Of the size of the tokenizer, not of the vocabulary. */
struct xe_decoder_t {
    size_t vocab_size, count;
    char *bytes;
    uint32_t *ids, *begins; /* where each token's bytes begin, and the end of all */
};

/* The byte that a character of byte-level BPE stands for, or -1: printable ones of Latin-1 are themselves, others from U+0100 on. */
static int byte_of(long point) {
    int others = 0;
    for (int byte = 0; byte < 256; byte++) {
        int printable = (byte >= 0x21 && byte < 0x7F) || (byte >= 0xA1 && byte < 0xAD) || byte >= 0xAE;
        if (point == (printable ? byte : 0x100 + others))
            return byte;
        others += !printable;
    }
    return -1;
}

static long next_point(const char **at) {
    const unsigned char *text = (const unsigned char *)*at;
    int more = *text < 0xC0 ? 0 : *text < 0xE0 ? 1 : *text < 0xF0 ? 2 : 3;
    long point = more ? *text & (0x3F >> more) : *text;
    for (int i = 1; i <= more; i++)
        point = point << 6 | (text[i] & 0x3F);
    *at += more + 1;
    return point;
}

/* Write a token's bytes, at most as many as its text has; their number. */
static size_t token_bytes(const char *text, size_t length, const int bytes_of[0x200], char *out) {
    size_t count = 0;
    for (const char *at = text; at < text + length;) {
        long point = next_point(&at);
        if (point >= 0x200 || bytes_of[point] < 0) { /* then all of it is text */
            memcpy(out, text, length);
            return length;
        }
        out[count++] = (char)bytes_of[point];
    }
    return count;
}

/* Texts of ids in the order they were found, and which document they are of: `place` is the id, then that order. */
struct token_list {
    struct document *d;
    struct slice *tokens;
    size_t count, vocab_size;
};

/* A text of an id; none for a special token, nor for an id that the model does not have. */
static void add_token(struct token_list *list, const struct node *id, const char *text, size_t length, int is_special) {
    struct document *d = list->d;
    if (!id || id->kind != JSON_INTEGER || id->integer < 0 || (uint64_t)id->integer >= list->vocab_size || d->failed)
        return;
    if (!is_utf8(text, length)) /* half of a pair */
        d->failed = fail(d->code, "expected tokens of %s in UTF-8, got other bytes; %s", d->name, d->advice);
    uint64_t place = (uint64_t)id->integer << 32 | list->count;
    list->tokens[list->count++] = (struct slice){text, is_special ? 0 : length, place};
}

/* The vocabulary's tokens, then the added ones, of which special ones are no text; the last of an id counts. */
static void list_tokens(struct token_list *tokens, struct reader vocabulary, struct reader added) {
    for (const struct node *n = first_of(vocabulary); n; n = next_of(vocabulary, n))
        add_token(tokens, n, n->key, n->key_length, 0);
    for (const struct node *n = first_of(added); n && !tokens->d->failed; n = next_of(added, n)) {
        struct reader token = reader_of(tokens->d, n, "tokenizer.json added_tokens", NULL, NULL);
        const struct node *special = member(token, "special"), *content = member(token, "content");
        if (!content || content->kind != JSON_TEXT)
            refuse(token, "content", "a text", content);
        else
            add_token(tokens, member(token, "id"), content->text, content->length, special && special->kind == JSON_TRUE);
    }
}

/* The bytes of listed tokens, in the order of their ids. */
static int fill_bytes(xe_decoder_t *decoder, struct token_list *list) {
    int bytes_of[0x200];
    size_t total = 0, at = 0;
    for (long point = 0; point < 0x200; point++)
        bytes_of[point] = byte_of(point);
    sort_slices(list->tokens, list->count, by_place);
    for (size_t i = 0; i < list->count; i++)
        total += list->tokens[i].length;
    decoder->ids = calloc(list->count + 1, sizeof *decoder->ids);
    decoder->begins = calloc(list->count + 1, sizeof *decoder->begins);
    decoder->bytes = malloc(total + 1); /* of a file of 64 MiB at most */
    if (!decoder->ids || !decoder->begins || !decoder->bytes)
        return no_memory();
    for (size_t i = 0; i < list->count; i++) {
        const struct slice *token = &list->tokens[i];
        if (i + 1 < list->count && token[1].place >> 32 == token->place >> 32)
            continue;
        decoder->ids[decoder->count] = (uint32_t)(token->place >> 32);
        decoder->begins[decoder->count++] = (uint32_t)at;
        at += token_bytes(token->text, token->length, bytes_of, decoder->bytes + at);
    }
    decoder->begins[decoder->count] = (uint32_t)at;
    return XE_OK;
}

static int read_vocabulary(xe_decoder_t *decoder, struct document *d) {
    struct reader root = reader_of(d, &d->nodes[1], d->name, NULL, NULL);
    struct reader kind = section(root, "decoder", "tokenizer.json decoder", NULL, NULL);
    const struct node *type = member(kind, "type");
    if (!d->failed && (!type || !is_text(type->text, type->length, "ByteLevel")))
        refuse(kind, "type", "ByteLevel; other tokenizers need Python", type);
    struct reader vocabulary = section(section(root, "model", "tokenizer.json model", NULL, NULL), "vocab", "tokenizer.json vocab", NULL, NULL);
    struct reader added = {d, NULL, "tokenizer.json"};
    if (member(root, "added_tokens"))
        added = list(root, "added_tokens", MOST_TENSORS);
    if (d->failed)
        return d->failed;
    size_t most = (size_t)vocabulary.object->count + (added.object ? added.object->count : 0);
    struct token_list tokens = {d, malloc((most + 1) * sizeof *tokens.tokens), 0, decoder->vocab_size};
    if (!tokens.tokens)
        return no_memory();
    list_tokens(&tokens, vocabulary, added);
    int code = d->failed ? d->failed : fill_bytes(decoder, &tokens);
    free(tokens.tokens);
    return code;
}

static int read_tokenizer_file(xe_decoder_t *decoder, const xe_model_t *model) {
    const char *name = model->manifest.tokenizer_file, *reason = NULL;
    struct document d = {name, "use Python for its text", XE_BUNDLE, 0, NULL, NULL, NULL, NULL, 0, 0, MOST_TOKENIZER_NODES};
    size_t size = 0;
    char *path = joined(model->folder, name);
    if (!path)
        return no_memory();
    d.bytes = read_whole(path, LARGEST_TOKENIZER, &size, &reason);
    free(path);
    if (!d.bytes)
        return FAIL_FOR(reason, XE_BUNDLE, "expected the bundle's file %s, got %s; copy the whole folder", name, reason);
    int code = parse_document(&d, size);
    code = code ? code : read_vocabulary(decoder, &d);
    free_document(&d);
    return code;
}

static int fill_decoder(xe_decoder_t *decoder, const xe_model_t *model) {
    const char *kind = model->manifest.tokenizer_kind;
    decoder->vocab_size = (size_t)model->manifest.vocab_size;
    if (!strcmp(kind, "huggingface"))
        return read_tokenizer_file(decoder, model);
    if (strcmp(kind, "byte"))
        return fail(XE_INPUT, "expected a bundle with a tokenizer, got one without; use ids");
    decoder->count = 256;
    decoder->bytes = malloc(decoder->count);
    decoder->ids = calloc(decoder->count, sizeof *decoder->ids);
    decoder->begins = calloc(decoder->count + 1, sizeof *decoder->begins);
    if (!decoder->bytes || !decoder->ids || !decoder->begins)
        return no_memory();
    for (uint32_t i = 0; i < decoder->count; i++) {
        decoder->bytes[i] = (char)i;
        decoder->ids[i] = decoder->begins[i] = i;
    }
    decoder->begins[decoder->count] = (uint32_t)decoder->count;
    return XE_OK;
}

int xe_decoder(const xe_model_t *model, xe_decoder_t **decoder) {
    if (!model || !decoder)
        return fail(XE_INPUT, "expected a model and a place for the decoder, got NULL; pass both");
    *decoder = NULL;
    xe_decoder_t *made = calloc(1, sizeof *made);
    int code = made ? fill_decoder(made, model) : no_memory();
    if (code)
        xe_free_decoder(made);
    else
        *decoder = made;
    return code;
}

void xe_free_decoder(xe_decoder_t *decoder) {
    if (!decoder)
        return;
    free(decoder->bytes);
    free(decoder->ids);
    free(decoder->begins);
    free(decoder);
}

int xe_decode(const xe_decoder_t *decoder, int64_t id, const char **bytes, size_t *count) {
    if (!decoder || !bytes || !count || id < 0 || (uint64_t)id >= decoder->vocab_size)
        return fail(XE_INPUT, "expected an id of the model's vocabulary, got %lld; pass one that was sampled", (long long)id);
    size_t low = 0, high = decoder->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (decoder->ids[middle] < (uint64_t)id)
            low = middle + 1;
        else
            high = middle;
    }
    int has_bytes = low < decoder->count && decoder->ids[low] == (uint64_t)id;
    *bytes = decoder->bytes + (has_bytes ? decoder->begins[low] : 0);
    *count = has_bytes ? decoder->begins[low + 1] - decoder->begins[low] : 0;
    return XE_OK;
}
