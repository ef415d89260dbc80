/* A Llama's int8 weights, read at the speed of memory.

   Weights stay as `quantize_int8` made them: rows of int8 and one scale for each. Each vector of
   inputs is quantized too, on the fly, but to int16: as finely as lets a sum of K products never
   leave int32. So the only visible rounding is that of the weights. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef struct {
    const int8_t *weight; /* (outputs, inputs) */
    const float *scale;   /* (outputs) */
    long outputs, inputs; /* inputs a multiple of 16, outputs of 4 */
} Linear;

typedef struct {
    Linear q, k, v, o, gate, up, down;
    const float *attention_norm, *feedforward_norm;
    float eps;
    long heads, kv_heads, head_dim;
} Block;

/* x (K) -> q (K), such that x = q * the returned scale. */
static float quantize(const float *x, long K, int16_t *q) {
    float largest = 0;
    for (long i = 0; i < K; i++) largest = fmaxf(largest, fabsf(x[i]));
    long most = INT32_MAX / 127 / K;
    float top = most < INT16_MAX ? most : INT16_MAX;
    float steps = largest > 0 ? top / largest : 0;
    for (long i = 0; i < K; i++) q[i] = (int16_t)rintf(x[i] * steps);
    return largest / top;
}

/* The inner loops. `dots` serves one input: four of its dot products with rows of the weight. It
   waits for memory, so it asks for the next four rows before they are needed. `tile` serves MANY:
   sums of SIX inputs with SIXTEEN rows of the weight, which `widen` has laid out for it. */
enum { SIX = 6, SIXTEEN = 16, MANY = 24 };

#ifdef __AVX2__
static inline void dots(const int16_t *x, const int8_t *w, long K, int32_t sums[4]) {
    __m256i sum[4] = {0};
    for (long k = 0; k < K; k += 16) {
        __m256i input = _mm256_loadu_si256((const __m256i *)(x + k));
        _mm_prefetch((const char *)w + 4 * (K + k), _MM_HINT_T0);
        for (int c = 0; c < 4; c++) {
            __m128i row = _mm_loadu_si128((const __m128i *)(w + c * K + k));
            __m256i products = _mm256_madd_epi16(input, _mm256_cvtepi8_epi16(row));
            sum[c] = _mm256_add_epi32(sum[c], products);
        }
    }
    /* the sums of each, side by side */
    __m256i halves = _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]),
                                       _mm256_hadd_epi32(sum[2], sum[3]));
    __m128i whole = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    _mm_storeu_si128((__m128i *)sums, whole);
}

/* Twelve sums in registers of their own: gcc would keep an array of them in memory, and some of
   these as well, were this not a function of its own. */
#define SIX_TIMES(ROW) ROW(0) ROW(1) ROW(2) ROW(3) ROW(4) ROW(5)
__attribute__((noinline))
static void tile(const int16_t *x, const int16_t *wide, long K, int32_t *sums) {
#define ROW(r) __m256i left##r = _mm256_setzero_si256(), right##r = left##r;
    SIX_TIMES(ROW)
#undef ROW
    for (long k = 0; k < K; k += 2, wide += 2 * SIXTEEN) {
        __m256i left = _mm256_loadu_si256((const __m256i *)wide);
        __m256i right = _mm256_loadu_si256((const __m256i *)(wide + SIXTEEN));
        int32_t pair;
#define ROW(r)                                                              \
    memcpy(&pair, x + r * K + k, sizeof pair);                              \
    __m256i input##r = _mm256_set1_epi32(pair);                             \
    left##r = _mm256_add_epi32(left##r, _mm256_madd_epi16(input##r, left)); \
    right##r = _mm256_add_epi32(right##r, _mm256_madd_epi16(input##r, right));
        SIX_TIMES(ROW)
#undef ROW
    }
#define ROW(r)                                                 \
    _mm256_storeu_si256((__m256i *)sums + 2 * r, left##r);     \
    _mm256_storeu_si256((__m256i *)sums + 2 * r + 1, right##r);
    SIX_TIMES(ROW)
#undef ROW
}
#else
static inline void dots(const int16_t *x, const int8_t *w, long K, int32_t sums[4]) {
    for (int c = 0; c < 4; c++) {
        sums[c] = 0;
        for (long k = 0; k < K; k++) sums[c] += x[k] * w[c * K + k];
    }
}

static inline void tile(const int16_t *x, const int16_t *wide, long K, int32_t *sums) {
    for (int i = 0; i < SIX * SIXTEEN; i++) sums[i] = 0;
    for (long k = 0; k < K; k += 2, wide += 2 * SIXTEEN)
        for (int r = 0; r < SIX; r++)
            for (int c = 0; c < SIXTEEN; c++)
                sums[r * SIXTEEN + c] +=
                    x[r * K + k] * wide[2 * c] + x[r * K + k + 1] * wide[2 * c + 1];
}
#endif

/* Sixteen rows of the weight as pairs of columns: w (16, K) -> wide (K/2, 16, 2). */
static void widen(const int8_t *w, long K, int16_t *wide) {
    for (long k = 0; k < K; k += 2)
        for (int c = 0; c < SIXTEEN; c++) {
            *wide++ = w[c * K + k];
            *wide++ = w[c * K + k + 1];
        }
}

/* Outputs j to j+3 for one quantized input: y (4). */
static inline void four(const Linear *l, long j, const int16_t *q, float step, float *y) {
    int32_t sums[4];
    dots(q, l->weight + j * l->inputs, l->inputs, sums);
    for (int c = 0; c < 4; c++) y[c] = sums[c] * step * l->scale[j + c];
}

static inline void add_four(const Linear *l, long j, const int16_t *q, float step, float *y) {
    float more[4];
    four(l, j, q, step, more);
    for (int c = 0; c < 4; c++) y[c] += more[c];
}

/* y = x Wᵀ. Shapes: x (M, inputs) -> y (M, outputs). Returns nonzero if memory has run out. */
int linear(const Linear *l, const float *x, float *y, long M) {
    long K = l->inputs, N = l->outputs;
    int16_t *q = malloc(M * K * sizeof *q);
    float *step = malloc(M * sizeof *step);
    int failed = !q || !step;
    if (!failed) {
#pragma omp parallel
        {
            /* without it, only slower */
            int16_t *wide = M < MANY ? NULL : aligned_alloc(64, K * SIXTEEN * sizeof *wide);
#pragma omp for schedule(static)
            for (long i = 0; i < M; i++) step[i] = quantize(x + i * K, K, q + i * K);
            /* sixteen rows of the weight stay near, while all inputs pass by */
#pragma omp for schedule(static)
            for (long j = 0; j < N; j += SIXTEEN) {
                long i = 0;
                if (wide && j + SIXTEEN <= N) {
                    widen(l->weight + j * K, K, wide);
                    for (; i + SIX <= M; i += SIX) {
                        int32_t sums[SIX * SIXTEEN];
                        tile(q + i * K, wide, K, sums);
                        for (int r = 0; r < SIX; r++)
                            for (int c = 0; c < SIXTEEN; c++)
                                y[(i + r) * N + j + c] =
                                    sums[r * SIXTEEN + c] * step[i + r] * l->scale[j + c];
                    }
                }
                for (; i < M; i++)
                    for (long p = j; p < j + SIXTEEN && p < N; p += 4)
                        four(l, p, q + i * K, step[i], y + i * N + p);
            }
            free(wide);
        }
    }
    free(q);
    free(step);
    return failed;
}

/* e^x to float32's precision: 2^n times the series of what is left of x. No library's expf, as a
   compiler can put eight of these side by side. */
static inline float exponential(float x) {
    x = x < -87 ? -87 : x > 88 ? 88 : x;
    float n = rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts */
    float series = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r / 720)))));
    union { int32_t bits; float number; } power = {((int32_t)n + 127) << 23};
    return series * power.number;
}

static void rms_norm(const float *x, const float *weight, float eps, long D, float *y) {
    float squares = 0;
    for (long i = 0; i < D; i++) squares += x[i] * x[i];
    float inverse = 1 / sqrtf(squares / D + eps);
    for (long i = 0; i < D; i++) y[i] = x[i] * inverse * weight[i];
}

static void rotate(float *x, const float *cosine, const float *sine, long d) {
    for (long i = 0; i < d / 2; i++) {
        float a = x[i], b = x[i + d / 2];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + d / 2] = a * sine[i] + b * cosine[i];
    }
}

/* One query against `length` keys and values; its scores are left in `scores`. */
static void attend(const float *query, const float *keys, const float *values, long length, long d,
                   float *scores, float *y) {
    float largest = -FLT_MAX, sum = 0;
    for (long s = 0; s < length; s++) {
        float dot = 0;
        for (long i = 0; i < d; i++) dot += query[i] * keys[s * d + i];
        scores[s] = dot / sqrtf(d);
        largest = fmaxf(largest, scores[s]);
    }
    for (long s = 0; s < length; s++) sum += scores[s] = exponential(scores[s] - largest);
    for (long i = 0; i < d; i++) y[i] = 0;
    for (long s = 0; s < length; s++)
        for (long i = 0; i < d; i++) y[i] += scores[s] / sum * values[s * d + i];
}

/* The inputs of a linear layer for T tokens: x (T, D) normed and quantized, each by some thread. */
static void prepare(const float *x, const float *norm, float eps, long D, long T, float *normed,
                    int16_t *q, float *step) {
#pragma omp for schedule(static)
    for (long t = 0; t < T; t++) {
        const float *input = x + t * D;
        if (norm) rms_norm(input, norm, eps, D, normed + t * D);
        step[t] = quantize(norm ? normed + t * D : input, D, q + t * D);
    }
}

/* LlamaModel.forward between embedding and last norm, for the T tokens from position `offset` of a
   cache on, which it extends. A token sees the positions up to its own, and of these the last
   `window`.

   Shapes: x (T, D), in and out; cosine and sine (T, d/2); of each block, keys and values
   (K, capacity, d).
   All threads walk through it together; they wait for each other at the end of each `omp for`. A
   row of weights is read once and serves all tokens.
   Returns nonzero if memory has run out. */
int blocks(const Block *all, long count, float *x, long T, const float *cosine, const float *sine,
           float *const *all_keys, float *const *all_values, long capacity, long offset,
           long window) {
    long d = all->head_dim, H = all->heads, K = all->kv_heads, D = all->q.inputs;
    long F = all->gate.outputs, widest = D > F ? D : F, seen = offset + T;
    widest = widest > H * d ? widest : H * d;
    float *shared = malloc(T * (2 * H * d + 2 * K * d + F + D + 1 + H * seen) * sizeof *shared);
    int16_t *q = malloc(T * widest * sizeof *q);
    if (!shared || !q) {
        free(shared);
        free(q);
        return 1;
    }
    float *query = shared, *key = query + T * H * d, *value = key + T * K * d;
    float *attended = value + T * K * d, *hidden = attended + T * H * d, *normed = hidden + T * F;
    float *step = normed + T * D, *scores = step + T;
#pragma omp parallel
    for (const Block *b = all; b < all + count; b++) {
        float *keys = all_keys[b - all], *values = all_values[b - all];
        prepare(x, b->attention_norm, b->eps, D, T, normed, q, step);
#pragma omp for schedule(static) nowait
        for (long j = 0; j < H * d; j += 4)
            for (long t = 0; t < T; t++) four(&b->q, j, q + t * D, step[t], query + t * H * d + j);
#pragma omp for schedule(static) nowait
        for (long j = 0; j < K * d; j += 4)
            for (long t = 0; t < T; t++) four(&b->k, j, q + t * D, step[t], key + t * K * d + j);
#pragma omp for schedule(static)
        for (long j = 0; j < K * d; j += 4)
            for (long t = 0; t < T; t++) four(&b->v, j, q + t * D, step[t], value + t * K * d + j);
#pragma omp for schedule(static)
        for (long i = 0; i < T * K; i++) {
            long t = i / K, h = i % K, place = (h * capacity + offset + t) * d;
            memcpy(keys + place, key + i * d, d * sizeof *keys);
            memcpy(values + place, value + i * d, d * sizeof *values);
            rotate(keys + place, cosine + t * d / 2, sine + t * d / 2, d);
        }
#pragma omp for schedule(static)
        for (long i = 0; i < T * H; i++) {
            long t = i / H, h = i % H, end = offset + t + 1, start = end > window ? end - window : 0;
            /* the key/value head that h shares, from `start` on */
            long first = (h / (H / K) * capacity + start) * d;
            rotate(query + i * d, cosine + t * d / 2, sine + t * d / 2, d);
            attend(query + i * d, keys + first, values + first, end - start, d, scores + i * seen,
                   attended + i * d);
        }
        prepare(attended, NULL, 0, H * d, T, NULL, q, step);
#pragma omp for schedule(static)
        for (long j = 0; j < D; j += 4)
            for (long t = 0; t < T; t++) add_four(&b->o, j, q + t * H * d, step[t], x + t * D + j);
        prepare(x, b->feedforward_norm, b->eps, D, T, normed, q, step);
#pragma omp for schedule(static)
        for (long j = 0; j < F; j += 4)
            for (long t = 0; t < T; t++) {
                float gate[4], up[4], *to = hidden + t * F + j;
                four(&b->gate, j, q + t * D, step[t], gate);
                four(&b->up, j, q + t * D, step[t], up);
                for (int c = 0; c < 4; c++) to[c] = gate[c] / (1 + exponential(-gate[c])) * up[c];
            }
        prepare(hidden, NULL, 0, F, T, NULL, q, step);
#pragma omp for schedule(static)
        for (long j = 0; j < D; j += 4)
            for (long t = 0; t < T; t++) add_four(&b->down, j, q + t * F, step[t], x + t * D + j);
    }
    free(shared);
    free(q);
    return 0;
}
