/* softmax(scale q k^T) v within each sequence, for CPUs with AVX-512: in fp32, or with -DBF16 in bfloat16.
 *
 * In: queries, keys and values, any strides over heads and tokens, channels side by side; the rotary turns of the
 * tokens, or none; the starts of the sequences. Out: (tokens, heads, channels). One thread.
 *
 * A block of ROWS queries meets KEYS keys at a time, and its scores become weights before they leave the registers:
 * 2^score, without the maximum of the row, which would want a second pass. Where the sum of a row shows that a weight
 * went out of range, its block is done again with the maximum. A register holds 16 keys (scores) or channels (values).
 * What is multiplied comes in words of 32 bits: one fp32, or two neighbouring bfloat16 whose products `vdpbf16ps` adds,
 * so that keys are laid out in pairs of channels and values in pairs of keys.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define VECTORS 4
#define ROWS 6
#define KEYS (VECTORS * LANES)
#define MOST_CHANNELS 64
#define INLINE static inline __attribute__((always_inline))

/* Sums of weights between these leave nothing of a row out, and their products with values in range. */
#define LEAST_TOTAL 0x1p-60f
#define MOST_TOTAL 0x1p60f

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Words __attribute__((vector_size(4 * LANES)));

INLINE Words load(const void *at) { return (Words)_mm512_loadu_si512(at); }

INLINE Words repeat(const void *word) {
    int32_t bits;
    memcpy(&bits, word, sizeof bits);
    return (Words)_mm512_set1_epi32(bits);
}

/* `length` keys, and as many as fill their last block. */
INLINE int64_t whole_blocks(int64_t length) { return (length + KEYS - 1) / KEYS * KEYS; }

/* The lanes before `count`. */
INLINE __mmask16 first(int64_t count) {
    return count >= LANES ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

#ifdef BF16

typedef uint16_t Number;
#define WIDE 2 /* numbers in a word */

/* Of 2^x on [-1/2, 1/2], relative error 7e-5; bfloat16 has 2e-3. */
static const float POLYNOMIAL[] = {9.99928073e-1f, 6.93260985e-1f, 2.42611125e-1f, 5.51716703e-2f};

INLINE Vector multiply_add(Vector sum, Words a, Words b) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

INLINE Words widen(const Number *from, int64_t count) {
    return (Words)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(count), from));
}

INLINE Vector get(const Number *from, int64_t count) { return (Vector)(widen(from, count) << 16); }

INLINE void put(Vector x, int64_t count, Number *to) {
    _mm256_mask_storeu_epi16(to, first(count), (__m256i)_mm512_cvtneps_pbh((__m512)x));
}

/* Two registers of weights, rounded, to their places in a row. Returns what is added to the row's sum. */
INLINE Vector keep(Vector low, Vector high, Number *to) {
    const Words both = (Words)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    _mm512_storeu_si512(to, (__m512i)both);
    return multiply_add((Vector){0}, both, (Words)_mm512_set1_epi32(0x3f803f80));
}

/* One word of each channel: the values of key j and of the one behind it, of which `left` are there. */
INLINE Words values_of(const Number *from, int64_t stride, int64_t left, int64_t count) {
    return widen(from, left > 0 ? count : 0) | widen(from + stride, left > 1 ? count : 0) << 16;
}

#else

typedef float Number;
#define WIDE 1

/* Of 2^x on [-1/2, 1/2], relative error 7e-8. */
static const float POLYNOMIAL[] = {1.00000007f,     6.93146967e-1f, 2.40221197e-1f,
                                   5.55071326e-2f, 9.67554183e-3f, 1.32764764e-3f};

INLINE Vector multiply_add(Vector sum, Words a, Words b) {
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
}

INLINE Vector get(const Number *from, int64_t count) { return (Vector)_mm512_maskz_loadu_ps(first(count), from); }

INLINE void put(Vector x, int64_t count, Number *to) { _mm512_mask_storeu_ps(to, first(count), (__m512)x); }

INLINE Vector keep(Vector low, Vector high, Number *to) {
    _mm512_storeu_ps(to, (__m512)low);
    _mm512_storeu_ps(to + LANES, (__m512)high);
    return low + high;
}

INLINE Words values_of(const Number *from, int64_t stride, int64_t left, int64_t count) {
    (void)stride;
    return (Words)get(from, left > 0 ? count : 0);
}

#endif

/* 2^x: a polynomial of what is left of the nearest integer, scaled exactly. */
INLINE Vector exp2_lanes(Vector x) {
    const __m512 whole = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps((__m512)x, whole);
    const int degree = sizeof POLYNOMIAL / sizeof *POLYNOMIAL - 1;
    __m512 y = _mm512_set1_ps(POLYNOMIAL[degree]);
    for (int i = degree - 1; i >= 0; i--) y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(POLYNOMIAL[i]));
    return (Vector)_mm512_scalef_ps(y, whole);
}

/* The channels of one token times `scale`, their pairs turned by complex numbers where there are any; rounded once. */
INLINE void turn(const Number *from, const float *turns, float scale, int channels, Number *to) {
    for (int c = 0; c < channels; c += LANES) {
        __m512 x = (__m512)(get(from + c, channels - c) * scale);
        if (turns != NULL) {
            const __m512 t = _mm512_maskz_loadu_ps(first(channels - c), turns + c);
            const __m512 across = _mm512_mul_ps(_mm512_permute_ps(x, 0xb1), _mm512_movehdup_ps(t));
            x = _mm512_fmaddsub_ps(x, _mm512_moveldup_ps(t), across);
        }
        put((Vector)x, channels - c, to + c);
    }
}

/* keys[block of KEYS][word of a key][key], turned; zero behind the last key. */
static void pack_keys(const Number *from, int64_t stride, const float *turns, int64_t length, int channels,
                      Number *keys) {
    Number turned[MOST_CHANNELS];
    for (int64_t j = 0; j < whole_blocks(length); j++) {
        if (j < length) turn(from + j * stride, turns == NULL ? NULL : turns + j * channels, 1.0f, channels, turned);
        else memset(turned, 0, sizeof turned);
        Number *to = keys + j / KEYS * KEYS * channels + j % KEYS * WIDE;
        for (int c = 0; c < channels; c += WIDE) memcpy(to + c * KEYS, turned + c, WIDE * sizeof(Number));
    }
}

/* values[word of keys][channel], zero behind the last key and channel. */
static void pack_values(const Number *from, int64_t stride, int64_t length, int channels, int width, Number *values) {
    for (int64_t j = 0; j < whole_blocks(length); j += WIDE)
        for (int c = 0; c < width; c += LANES) {
            const Words words = values_of(from + j * stride + c, stride, length - j, channels - c);
            _mm512_storeu_si512(values + j * width + WIDE * c, (__m512i)words);
        }
}

/* Scores of ROWS queries and one block of keys. */
INLINE void score(const Number *queries, const Number *keys, int channels, Vector sum[ROWS][VECTORS]) {
    for (int r = 0; r < ROWS; r++)
        for (int x = 0; x < VECTORS; x++) sum[r][x] = (Vector){0};
    for (int c = 0; c < channels; c += WIDE) {
        Words key[VECTORS];
        for (int x = 0; x < VECTORS; x++) key[x] = load(keys + c * KEYS + x * LANES * WIDE);
        for (int r = 0; r < ROWS; r++) {
            const Words query = repeat(queries + r * channels + c);
            for (int x = 0; x < VECTORS; x++) sum[r][x] = multiply_add(sum[r][x], query, key[x]);
        }
    }
}

/* The largest score of each row. */
static void maxima(const Number *queries, const Number *keys, int64_t length, int channels, float maximum[ROWS]) {
    Vector sum[ROWS][VECTORS];
    __m512 largest[ROWS];
    for (int r = 0; r < ROWS; r++) largest[r] = _mm512_set1_ps(-__builtin_inff());
    for (int64_t j = 0; j < length; j += KEYS) {
        score(queries, keys + j * channels, channels, sum);
        for (int r = 0; r < ROWS; r++)
            for (int x = 0; x < VECTORS; x++)
                largest[r] = _mm512_mask_max_ps(largest[r], first(length - j - x * LANES), largest[r], (__m512)sum[r][x]);
    }
    for (int r = 0; r < ROWS; r++) maximum[r] = _mm512_reduce_max_ps(largest[r]);
}

/* weights[row][key] = 2^(score - shift), zero behind the last key; total[row] is their sum. */
static void weigh(const Number *queries, const Number *keys, int64_t length, int64_t padded, int channels,
                  const float shift[ROWS], Number *weights, float total[ROWS]) {
    Vector sum[ROWS][VECTORS], part[ROWS];
    for (int r = 0; r < ROWS; r++) part[r] = (Vector){0};
    for (int64_t j = 0; j < length; j += KEYS) {
        score(queries, keys + j * channels, channels, sum);
        for (int x = 0; x < VECTORS; x += 2) {
            const int64_t left = length - j - x * LANES;
            for (int r = 0; r < ROWS; r++) {
                Vector low = exp2_lanes(sum[r][x] - shift[r]), high = exp2_lanes(sum[r][x + 1] - shift[r]);
                if (left < 2 * LANES) {
                    low = (Vector)_mm512_maskz_mov_ps(first(left), (__m512)low);
                    high = (Vector)_mm512_maskz_mov_ps(first(left - LANES), (__m512)high);
                }
                part[r] += keep(low, high, weights + r * padded + j + x * LANES);
            }
        }
    }
    for (int r = 0; r < ROWS; r++) total[r] = _mm512_reduce_add_ps((__m512)part[r]);
}

/* mixed[row][channel] = sum over keys of weight x value; `vectors` and `unroll` are constants where this is inlined. */
INLINE void mix(const Number *weights, const Number *values, int64_t padded, const int vectors, const int unroll,
                float *mixed) {
    Vector sum[VECTORS][ROWS][VECTORS];
    for (int u = 0; u < unroll; u++)
        for (int r = 0; r < ROWS; r++)
            for (int x = 0; x < vectors; x++) sum[u][r][x] = (Vector){0};
    for (int64_t j = 0; j < padded; j += WIDE * unroll)
        for (int u = 0; u < unroll; u++) {
            const Number *value = values + (j + WIDE * u) * vectors * LANES;
            for (int r = 0; r < ROWS; r++) {
                const Words weight = repeat(weights + r * padded + j + WIDE * u);
                for (int x = 0; x < vectors; x++)
                    sum[u][r][x] = multiply_add(sum[u][r][x], weight, load(value + x * LANES * WIDE));
            }
        }
    for (int r = 0; r < ROWS; r++)
        for (int x = 0; x < vectors; x++) {
            for (int u = 1; u < unroll; u++) sum[0][r][x] += sum[u][r][x];
            _mm512_storeu_ps(mixed + r * MOST_CHANNELS + x * LANES, (__m512)sum[0][r][x]);
        }
}

static void mix_all(const Number *weights, const Number *values, int64_t padded, int width, float *mixed) {
    switch (width / LANES) {
    case 1: mix(weights, values, padded, 1, 4, mixed); break;
    case 2: mix(weights, values, padded, 2, 2, mixed); break;
    case 3: mix(weights, values, padded, 3, 1, mixed); break;
    default: mix(weights, values, padded, 4, 1, mixed); break;
    }
}

/* One row of the output. */
static void store(const float *mixed, float total, int channels, Number *out) {
    for (int c = 0; c < channels; c += LANES) put((Vector)load(mixed + c) / total, channels - c, out + c);
}

/* Work space for one head of one sequence. */
typedef struct {
    Number *queries, *keys, *values, *weights;
} Space;

/* One head of one sequence, packed into `space`; row i of `out` is `stride` numbers behind row i - 1. */
static void attend_packed(const Space *space, int64_t length, int channels, int width, Number *out, int64_t stride) {
    const int64_t padded = whole_blocks(length);
    float mixed[ROWS * MOST_CHANNELS], total[ROWS];
    for (int64_t i = 0; i < length; i += ROWS) {
        const Number *queries = space->queries + i * channels;
        float shift[ROWS] = {0};
        weigh(queries, space->keys, length, padded, channels, shift, space->weights, total);
        int in_range = 1;
        for (int r = 0; r < ROWS; r++) in_range &= total[r] >= LEAST_TOTAL && total[r] <= MOST_TOTAL;
        if (!in_range) {
            maxima(queries, space->keys, length, channels, shift);
            weigh(queries, space->keys, length, padded, channels, shift, space->weights, total);
        }
        mix_all(space->weights, space->values, padded, width, mixed);
        for (int r = 0; r < ROWS && i + r < length; r++)
            store(mixed + r * MOST_CHANNELS, total[r], channels, out + (i + r) * stride);
    }
}

typedef struct {
    const Number *data;
    int64_t head_stride, token_stride;
} Tensor;

/* Attend within every sequence. Returns 0, or -1 where the work space could not be had.
 * `channels` is even and at most MOST_CHANNELS; `turns` is NULL or holds a complex number for each token and pair of
 * channels; `scale` makes scores that count in powers of two; `out` is (tokens, heads, channels), dense. */
int attend(const Tensor *q, const Tensor *k, const Tensor *v, const float *turns, float scale, Number *out,
           const int64_t *starts, int64_t sequences, int64_t heads, int64_t channels) {
    int64_t longest = 0;
    for (int64_t b = 0; b < sequences; b++)
        if (starts[b + 1] - starts[b] > longest) longest = starts[b + 1] - starts[b];
    const int64_t most = whole_blocks(longest);
    const int width = (int)((channels + LANES - 1) / LANES * LANES);
    const size_t numbers = most * (channels + width + ROWS) + (most + ROWS) * channels;
    Number *all = aligned_alloc(64, (numbers * sizeof(Number) + 63) / 64 * 64);
    if (all == NULL) return -1;
    const Space space = {.keys = all,
                         .values = all + most * channels,
                         .weights = all + most * (channels + width),
                         .queries = all + most * (channels + width + ROWS)};
    for (int64_t b = 0; b < sequences; b++) {
        const int64_t start = starts[b], length = starts[b + 1] - start;
        const float *here = turns == NULL ? NULL : turns + start * channels;
        memset(space.queries + length * channels, 0, ROWS * channels * sizeof(Number));
        for (int64_t h = 0; h < heads; h++) {
            const Number *queries = q->data + h * q->head_stride + start * q->token_stride;
            for (int64_t i = 0; i < length; i++)
                turn(queries + i * q->token_stride, here == NULL ? NULL : here + i * channels, scale, (int)channels,
                     space.queries + i * channels);
            pack_keys(k->data + h * k->head_stride + start * k->token_stride, k->token_stride, here, length, (int)channels,
                      space.keys);
            pack_values(v->data + h * v->head_stride + start * v->token_stride, v->token_stride, length, (int)channels,
                        width, space.values);
            attend_packed(&space, length, (int)channels, width, out + (start * heads + h) * channels, heads * channels);
        }
    }
    free(all);
    return 0;
}
