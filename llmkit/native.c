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
   waits for memory, so it asks for the next four rows before they are needed. `tile` serves many:
   sums of SIX inputs with SIXTEEN rows of the weight, which `widen` has laid out for it. */
enum { SIX = 6, SIXTEEN = 16 };

#ifdef __AVX2__
static inline int32_t total(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
}

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
    for (int c = 0; c < 4; c++) sums[c] = total(sum[c]);
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
            int16_t *wide = M < SIX ? NULL : aligned_alloc(64, K * SIXTEEN * sizeof *wide);
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

/* TransformerBlock.forward for the one token at position `offset` of a cache, which it extends.
   The token sees the positions from `start` on, its own included.

   Shapes: x and y (D), cosine and sine (d/2), keys and values (K, capacity, d).
   All threads walk through it together; they wait for each other at the end of each `omp for`.
   Returns nonzero if memory has run out. */
int block(const Block *b, const float *x, const float *cosine, const float *sine, float *keys,
          float *values, long capacity, long offset, long start, float *y) {
    long d = b->head_dim, H = b->heads, K = b->kv_heads, D = b->q.inputs, F = b->gate.outputs;
    long width = D > F ? D : F, length = offset + 1 - start;
    width = width > H * d ? width : H * d;
    float *shared = malloc((2 * H * d + 2 * K * d + F + H * length) * sizeof *shared);
    if (!shared) return 1;
    float *query = shared, *key = query + H * d, *value = key + K * d, *attended = value + K * d;
    float *hidden = attended + H * d, *scores = hidden + F;
#pragma omp parallel
    {
        int16_t q[width]; /* each thread has its own: quantizing twice is quicker than waiting */
        float normed[D];
        rms_norm(x, b->attention_norm, b->eps, D, normed);
        float step = quantize(normed, D, q);
#pragma omp for schedule(static) nowait
        for (long j = 0; j < H * d; j += 4) four(&b->q, j, q, step, query + j);
#pragma omp for schedule(static) nowait
        for (long j = 0; j < K * d; j += 4) four(&b->k, j, q, step, key + j);
#pragma omp for schedule(static)
        for (long j = 0; j < K * d; j += 4) four(&b->v, j, q, step, value + j);
#pragma omp for schedule(static)
        for (long h = 0; h < K; h++) {
            float *new_key = keys + (h * capacity + offset) * d;
            float *new_value = values + (h * capacity + offset) * d;
            for (long i = 0; i < d; i++) new_key[i] = key[h * d + i];
            for (long i = 0; i < d; i++) new_value[i] = value[h * d + i];
            rotate(new_key, cosine, sine, d);
        }
#pragma omp for schedule(static)
        for (long h = 0; h < H; h++) {
            /* the key/value head that h shares, from `start` on */
            long first = (h / (H / K) * capacity + start) * d;
            rotate(query + h * d, cosine, sine, d);
            attend(query + h * d, keys + first, values + first, length, d, scores + h * length,
                   attended + h * d);
        }
        step = quantize(attended, H * d, q);
#pragma omp for schedule(static)
        for (long j = 0; j < D; j += 4) {
            four(&b->o, j, q, step, y + j);
            for (int c = 0; c < 4; c++) y[j + c] += x[j + c];
        }
        rms_norm(y, b->feedforward_norm, b->eps, D, normed);
        step = quantize(normed, D, q);
#pragma omp for schedule(static)
        for (long j = 0; j < F; j += 4) {
            float gate[4], up[4];
            four(&b->gate, j, q, step, gate);
            four(&b->up, j, q, step, up);
            for (int c = 0; c < 4; c++) hidden[j + c] = gate[c] / (1 + exponential(-gate[c])) * up[c];
        }
        step = quantize(hidden, F, q);
#pragma omp for schedule(static)
        for (long j = 0; j < D; j += 4) {
            float down[4];
            four(&b->down, j, q, step, down);
            for (int c = 0; c < 4; c++) y[j + c] += down[c];
        }
    }
    free(shared);
    return 0;
}
