/* softmax(q k^T) v within each sequence, for CPUs that multiply bfloat16 in AVX-512.
 *
 * In: queries (scaled), keys and values in bfloat16, any strides over heads and tokens, channels side by side; the
 * starts of the sequences. Out: (tokens, heads, channels) in bfloat16. One thread. Scores, their maximum, exponentials
 * and sums stay in fp32 registers and the first-level cache; only the weights are rounded to bfloat16, as the matrix
 * units want them.
 *
 * A block of ROWS queries meets KEYS keys at a time. One AVX-512 register holds 16 keys (scores) or 16 channels
 * (values); `vdpbf16ps` adds the products of two neighbouring bfloat16 to each lane, so keys are laid out in pairs of
 * channels and values in pairs of keys.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 6
#define LANES 16
#define KEYS 64

typedef uint16_t bf16;

typedef struct {
    const bf16 *data;
    int64_t head_stride, token_stride;
} Tensor;

static inline __m512bh pair(const bf16 *two) {
    int32_t bits;
    memcpy(&bits, two, sizeof bits);
    return (__m512bh)_mm512_set1_epi32(bits);
}

static inline __m512bh load(const bf16 *at) { return (__m512bh)_mm512_loadu_si512(at); }

/* 2^x by a polynomial of degree 4 on [-1/2, 1/2] (relative error 4e-6, far below bfloat16's 4e-3) and an exact scaling. */
static inline __m512 exp2_16(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(9.6181291e-3f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.5504109e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(2.4022651e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

/* keys[channel / 2][key][2], zero behind the last key and channel. */
static void pack_keys(const Tensor *k, int64_t first, int64_t length, int64_t padded, int channels, bf16 *keys) {
    memset(keys, 0, sizeof(bf16) * padded * (channels + (channels & 1)));
    for (int64_t j = 0; j < length; j++) {
        const bf16 *from = k->data + (first + j) * k->token_stride;
        for (int c = 0; c < channels; c++) keys[((c / 2) * padded + j) * 2 + (c & 1)] = from[c];
    }
}

/* values[key / 2][channel][2], zero behind the last key and channel. */
static void pack_values(const Tensor *v, int64_t first, int64_t length, int64_t padded, int channels, int vectors,
                        bf16 *values) {
    memset(values, 0, sizeof(bf16) * padded * vectors * LANES);
    for (int64_t j = 0; j < length; j++) {
        const bf16 *from = v->data + (first + j) * v->token_stride;
        bf16 *to = values + (j / 2) * vectors * LANES * 2 + (j & 1);
        for (int c = 0; c < channels; c++) to[2 * c] = from[c];
    }
}

/* scores[row][key] of ROWS queries with every key; returns each row's maximum over the true keys. */
static void score(const bf16 *const query[ROWS], const bf16 *keys, int64_t length, int64_t padded, int channels,
                  float *scores, float maximum[ROWS]) {
    const int vectors = KEYS / LANES;
    __m512 largest[ROWS];
    for (int r = 0; r < ROWS; r++) largest[r] = _mm512_set1_ps(-__builtin_inff());
    for (int64_t j = 0; j < padded; j += KEYS) {
        __m512 sum[ROWS][KEYS / LANES];
        for (int r = 0; r < ROWS; r++)
            for (int x = 0; x < vectors; x++) sum[r][x] = _mm512_setzero_ps();
        for (int c = 0; c < channels; c += 2) {
            const bf16 *row = keys + ((c / 2) * padded + j) * 2;
            __m512bh key[KEYS / LANES];
            for (int x = 0; x < vectors; x++) key[x] = load(row + x * LANES * 2);
            for (int r = 0; r < ROWS; r++) {
                const __m512bh q = pair(query[r] + c);
                for (int x = 0; x < vectors; x++) sum[r][x] = _mm512_dpbf16_ps(sum[r][x], q, key[x]);
            }
        }
        for (int x = 0; x < vectors; x++) {
            const int64_t left = length - j - x * LANES;
            const __mmask16 real = left >= LANES ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
            for (int r = 0; r < ROWS; r++) {
                const __m512 s = _mm512_mask_blend_ps(real, _mm512_set1_ps(-__builtin_inff()), sum[r][x]);
                largest[r] = _mm512_max_ps(largest[r], s);
                _mm512_storeu_ps(scores + r * padded + j + x * LANES, s);
            }
        }
    }
    for (int r = 0; r < ROWS; r++) maximum[r] = _mm512_reduce_max_ps(largest[r]);
}

/* weights = e^(score - maximum) in bfloat16; returns their sum. */
static float exponentiate(const float *scores, float maximum, int64_t padded, bf16 *weights) {
    const __m512 log2e = _mm512_set1_ps(1.44269504f), shift = _mm512_set1_ps(-maximum * 1.44269504f);
    __m512 total = _mm512_setzero_ps();
    for (int64_t j = 0; j < padded; j += 2 * LANES) {
        const __m512 low = exp2_16(_mm512_fmadd_ps(_mm512_loadu_ps(scores + j), log2e, shift));
        const __m512 high = exp2_16(_mm512_fmadd_ps(_mm512_loadu_ps(scores + j + LANES), log2e, shift));
        total = _mm512_add_ps(total, _mm512_add_ps(low, high));
        _mm512_storeu_si512(weights + j, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    return _mm512_reduce_add_ps(total);
}

/* mixed[row][channel] = sum over keys of weight x value; `vectors` and `unroll` are constants where this is inlined. */
static inline __attribute__((always_inline)) void mix(const bf16 *weights, const bf16 *values, int64_t padded,
                                                      const int vectors, const int unroll, float *mixed) {
    __m512 sum[4][ROWS][4];
    for (int u = 0; u < unroll; u++)
        for (int r = 0; r < ROWS; r++)
            for (int x = 0; x < vectors; x++) sum[u][r][x] = _mm512_setzero_ps();
    for (int64_t j = 0; j < padded; j += 2 * unroll)
        for (int u = 0; u < unroll; u++) {
            const bf16 *value = values + (j / 2 + u) * vectors * LANES * 2;
            for (int r = 0; r < ROWS; r++) {
                const __m512bh w = pair(weights + r * padded + j + 2 * u);
                for (int x = 0; x < vectors; x++)
                    sum[u][r][x] = _mm512_dpbf16_ps(sum[u][r][x], w, load(value + x * LANES * 2));
            }
        }
    for (int r = 0; r < ROWS; r++)
        for (int x = 0; x < vectors; x++) {
            __m512 all = sum[0][r][x];
            for (int u = 1; u < unroll; u++) all = _mm512_add_ps(all, sum[u][r][x]);
            _mm512_storeu_ps(mixed + (r * vectors + x) * LANES, all);
        }
}

static void mix_any(const bf16 *weights, const bf16 *values, int64_t padded, int vectors, float *mixed) {
    switch (vectors) {
    case 1: mix(weights, values, padded, 1, 4, mixed); break;
    case 2: mix(weights, values, padded, 2, 2, mixed); break;
    case 3: mix(weights, values, padded, 3, 1, mixed); break;
    default: mix(weights, values, padded, 4, 1, mixed); break;
    }
}

static void store(const float *mixed, float total, int channels, bf16 *out) {
    const __m512 factor = _mm512_set1_ps(1.0f / total);
    for (int c = 0; c < channels; c += LANES) {
        const int left = channels - c;
        const __mmask16 real = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
        const __m256bh low = _mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(mixed + c), factor));
        _mm256_mask_storeu_epi16(out + c, real, (__m256i)low);
    }
}

/* Attend within every sequence. Returns 0, or -1 where the work space could not be had.
 * `channels` is even and at most 64; `out` is (tokens, heads, channels), dense. */
int attend(const Tensor *q, const Tensor *k, const Tensor *v, bf16 *out, const int64_t *starts, int64_t sequences,
           int64_t heads, int64_t channels) {
    int64_t longest = 0;
    for (int64_t b = 0; b < sequences; b++)
        if (starts[b + 1] - starts[b] > longest) longest = starts[b + 1] - starts[b];
    const int64_t most = (longest + KEYS - 1) / KEYS * KEYS;
    const int vectors = (int)((channels + LANES - 1) / LANES);
    const size_t bytes = most * (sizeof(bf16) * (channels + vectors * LANES + ROWS) + sizeof(float) * ROWS);
    char *space = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (space == NULL) return -1;
    float *scores = (float *)space;
    bf16 *keys = (bf16 *)(scores + ROWS * most), *values = keys + most * channels;
    bf16 *weights = values + most * vectors * LANES;
    float mixed[ROWS * 4 * LANES], maximum[ROWS];
    for (int64_t b = 0; b < sequences; b++) {
        const int64_t first = starts[b], length = starts[b + 1] - first, padded = (length + KEYS - 1) / KEYS * KEYS;
        for (int64_t h = 0; h < heads; h++) {
            const Tensor qh = {q->data + h * q->head_stride, 0, q->token_stride};
            const Tensor kh = {k->data + h * k->head_stride, 0, k->token_stride};
            const Tensor vh = {v->data + h * v->head_stride, 0, v->token_stride};
            pack_keys(&kh, first, length, padded, (int)channels, keys);
            pack_values(&vh, first, length, padded, (int)channels, vectors, values);
            for (int64_t i = 0; i < length; i += ROWS) {
                const bf16 *query[ROWS];
                for (int r = 0; r < ROWS; r++) {
                    const int64_t row = i + r < length ? i + r : length - 1;
                    query[r] = qh.data + (first + row) * qh.token_stride;
                }
                score(query, keys, length, padded, (int)channels, scores, maximum);
                float total[ROWS];
                for (int r = 0; r < ROWS; r++)
                    total[r] = exponentiate(scores + r * padded, maximum[r], padded, weights + r * padded);
                mix_any(weights, values, padded, vectors, mixed);
                for (int r = 0; r < ROWS && i + r < length; r++)
                    store(mixed + r * vectors * LANES, total[r], (int)channels,
                          out + ((first + i + r) * heads + h) * channels);
            }
        }
    }
    free(space);
    return 0;
}
