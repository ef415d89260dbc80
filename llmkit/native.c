/* A Llama's int8 weights, read at the speed of memory.

   A token's numbers are the same to the last bit, whether it comes alone or with others, fewer than
   MANY: that is why no compiler may reorder sums here, save where a line says so.

   Weights stay as `quantize_int8` made them: rows of int8 and one scale for each. Inputs are
   quantized too, on the fly. A few of them to int16, as finely as lets a sum of K products never
   leave int32: the only visible rounding is that of the weights. Many of them, where arithmetic is
   what takes the time, as this processor multiplies fastest: with AVX-512 VNNI to int8, with a step
   for each GROUP of 64 numbers. */

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
    long heads, kv_heads, head_dim; /* head_dim a multiple of 16 */
} Block;

static float largest(const float *x, long K) {
    float most = 0;
#pragma omp simd reduction(max : most)
    for (long i = 0; i < K; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

/* x (K) -> q (K), such that x = q * the returned step. */
static float quantize(const float *x, long K, int16_t *q) {
    float most = largest(x, K);
    long limit = INT32_MAX / 127 / K;
    float top = limit < INT16_MAX ? limit : INT16_MAX;
    float steps = most > 0 ? top / most : 0;
    for (long i = 0; i < K; i++) q[i] = (int16_t)rintf(x[i] * steps);
    return most / top;
}

/* Memory from the start of a cache line on: what a wide register reads should not lie on two. */
static void *room_for(size_t bytes) { return aligned_alloc(64, (bytes / 64 + 1) * 64); }

/* The inner loops. `dots` is for a few inputs: the dot products of n of them, at most AT_ONCE, with four
   rows of the weight. It waits for memory, so it asks for the next four rows before they are needed.
   `tile` is for MANY: the products of INPUTS of them with ROWS of the weight, which `pack` has laid
   out for it, so that no sum runs across a register. */
#if defined __AVX512VNNI__
enum { AT_ONCE = 6, INPUTS = 12, ROWS = 32, GROUP = 64 };
#else
enum { AT_ONCE = 1, INPUTS = 6, ROWS = 16 };
#endif
enum { MANY = 49 }; /* more than `FEW` of quantization.py, so that these stay exact */

#ifdef __AVX2__
/* The sums of each, side by side. */
static inline void add_up(__m256i a, __m256i b, __m256i c, __m256i d, int32_t sums[4]) {
    __m256i halves = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    __m128i whole = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    _mm_storeu_si128((__m128i *)sums, whole);
}

/* One input's. */
static void dots_of_one(const int16_t *x, const int8_t *w, long K, int32_t sums[4]) {
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
    add_up(sum[0], sum[1], sum[2], sum[3], sums);
}
#endif

/* Sums in registers of their own: gcc would keep an array of them in memory. */
#define SIX_TIMES(ROW) ROW(0) ROW(1) ROW(2) ROW(3) ROW(4) ROW(5)

#if defined __AVX512VNNI__
/* What _mm512_dpwssd_epi32 and _mm512_dpbusd_epi32 do; for these gcc copies every sum, twice. */
#define MULTIPLY(how, sum, input, weight) \
    __asm__(#how " %2, %1, %0" : "+v"(sum) : "v"(input), "v"(weight))

static inline __m256i half(__m512i sum) {
    return _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
}

/* Several inputs'; inlined for each n. */
static inline __attribute__((always_inline)) void dots_of(const int n, const int16_t *x,
                                                          const int8_t *w, long K,
                                                          int32_t sums[][4]) {
#define ROW(r) __m512i a##r = _mm512_setzero_si512(), b##r = a##r, c##r = a##r, d##r = a##r;
    SIX_TIMES(ROW)
#undef ROW
    long k = 0;
/* Where sums are few, each waits for its last product: an addition apart waits less. */
#define ADD_PRODUCTS(sum, row)                                              \
    if (n <= 4) sum = _mm512_add_epi32(sum, _mm512_madd_epi16(input, row)); \
    else MULTIPLY(vpdpwssd, sum, input, row)
#define STEP /* through `some` columns, 32 or 16 */                               \
    const __mmask32 mask = (1ull << some) - 1;                                    \
    __m512i first = WIDE(0), second = WIDE(1), third = WIDE(2), fourth = WIDE(3); \
    SIX_TIMES(ROW)
#define WIDE(c) _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, w + c * K + k))
#define ROW(r)                                                         \
    if (r < n) {                                                       \
        __m512i input = _mm512_maskz_loadu_epi16(mask, x + r * K + k); \
        ADD_PRODUCTS(a##r, first);                                     \
        ADD_PRODUCTS(b##r, second);                                    \
        ADD_PRODUCTS(c##r, third);                                     \
        ADD_PRODUCTS(d##r, fourth);                                    \
    }
    for (const int some = 32; k + some <= K; k += some) {
        _mm_prefetch((const char *)w + 4 * (K + k), _MM_HINT_T0);
        _mm_prefetch((const char *)w + 4 * (K + k) + 64, _MM_HINT_T0);
        STEP
    }
    if (k < K) {
        const int some = 16;
        STEP
    }
#undef ROW
#undef WIDE
#undef STEP
#undef ADD_PRODUCTS
#define ROW(r) if (r < n) add_up(half(a##r), half(b##r), half(c##r), half(d##r), sums[r]);
    SIX_TIMES(ROW)
#undef ROW
}

static void dots(int n, const int16_t *x, const int8_t *w, long K, int32_t sums[][4]) {
    switch (n) {
    case 1: dots_of_one(x, w, K, sums[0]); break;
    case 2: dots_of(2, x, w, K, sums); break;
    case 3: dots_of(3, x, w, K, sums); break;
    case 4: dots_of(4, x, w, K, sums); break;
    case 5: dots_of(5, x, w, K, sums); break;
    default: dots_of(6, x, w, K, sums);
    }
}

static inline void add_product(float *y, __m512i sum, float step) {
    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(step));
    _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), product));
}

/* The processor multiplies unsigned bytes by signed ones. So inputs are raised by 128, and each sum
   begins as much lower as that adds: 128 times the sum of its weights, which stands before them. */
typedef uint8_t Quantized;
static long groups_of(long K) { return K / GROUP; }
static long packed_bytes(long K) { return K * ROWS + groups_of(K) * ROWS * sizeof(int32_t); }

static void quantize_many(const float *x, long K, Quantized *q, float *step) {
    for (long g = 0; g < groups_of(K); g++, x += GROUP, q += GROUP) {
        float most = largest(x, GROUP), steps = most > 0 ? 127 / most : 0;
        for (int i = 0; i < GROUP; i++) q[i] = (int)rintf(x[i] * steps) + 128;
        step[g] = most / 127;
    }
}

/* w (rows, K) -> for each group, where its sums begin (ROWS) and its weights (GROUP/4, ROWS, 4). */
static void pack(const int8_t *w, long rows, long K, char *wide) {
    memset(wide, 0, packed_bytes(K));
    for (long g = 0; g < groups_of(K); g++, w += GROUP) {
        int32_t *start = (int32_t *)wide;
        wide += ROWS * sizeof *start;
        for (long c = 0; c < rows; c++) {
            for (int k = 0; k < GROUP; k++) start[c] -= 128 * w[c * K + k];
            for (int k = 0; k < GROUP; k += 4) memcpy(wide + k * ROWS + 4 * c, w + c * K + k, 4);
        }
        wide += GROUP * ROWS;
    }
}

#define TWELVE_TIMES(ROW) SIX_TIMES(ROW) ROW(6) ROW(7) ROW(8) ROW(9) ROW(10) ROW(11)
/* Not inlined: gcc would run out of registers. */
__attribute__((noinline))
static void tile(const Quantized *x, const float *step, const char *wide, long K, float *sums) {
    memset(sums, 0, INPUTS * ROWS * sizeof *sums);
    for (long g = 0; g < groups_of(K); g++, x += GROUP, step++) {
        __m512i low = _mm512_load_si512(wide), high = _mm512_load_si512(wide + 64);
        wide += 128;
#define ROW(r) __m512i left##r = low, right##r = high;
        TWELVE_TIMES(ROW)
#undef ROW
        for (int k = 0; k < GROUP; k += 4, wide += 128) {
            int32_t bytes;
            low = _mm512_load_si512(wide), high = _mm512_load_si512(wide + 64);
#define ROW(r)                                   \
    memcpy(&bytes, x + r * K + k, sizeof bytes); \
    __m512i input##r = _mm512_set1_epi32(bytes); \
    MULTIPLY(vpdpbusd, left##r, input##r, low);  \
    MULTIPLY(vpdpbusd, right##r, input##r, high);
            TWELVE_TIMES(ROW)
#undef ROW
        }
#define ROW(r)                                                     \
    add_product(sums + r * ROWS, left##r, step[r * groups_of(K)]); \
    add_product(sums + r * ROWS + 16, right##r, step[r * groups_of(K)]);
        TWELVE_TIMES(ROW)
#undef ROW
    }
}
#elif defined __AVX2__
static void dots(int n, const int16_t *x, const int8_t *w, long K, int32_t sums[][4]) {
    dots_of_one(x, w, K, sums[0]);
}

/* All of an input is one group here, and all is as `dots` has it. */
typedef int16_t Quantized;
static long groups_of(long K) { return 1; }
static long packed_bytes(long K) { return K * ROWS * sizeof(Quantized); }
static void quantize_many(const float *x, long K, Quantized *q, float *step) {
    *step = quantize(x, K, q);
}

/* w (rows, K) -> pairs of columns (K/2, ROWS, 2), in int16. */
static void pack(const int8_t *w, long rows, long K, char *wide) {
    Quantized *to = (Quantized *)wide;
    memset(wide, 0, packed_bytes(K));
    for (long k = 0; k < K; k += 2, to += 2 * ROWS)
        for (long c = 0; c < rows; c++) {
            to[2 * c] = w[c * K + k];
            to[2 * c + 1] = w[c * K + k + 1];
        }
}

/* Not inlined: gcc would run out of registers. */
__attribute__((noinline))
static void tile(const Quantized *x, const float *step, const char *packed, long K, float *sums) {
    const Quantized *wide = (const Quantized *)packed;
#define ROW(r) __m256i left##r = _mm256_setzero_si256(), right##r = left##r;
    SIX_TIMES(ROW)
#undef ROW
    for (long k = 0; k < K; k += 2, wide += 2 * ROWS) {
        __m256i left = _mm256_loadu_si256((const __m256i *)wide);
        __m256i right = _mm256_loadu_si256((const __m256i *)(wide + ROWS));
        int32_t pair;
#define ROW(r)                                                              \
    memcpy(&pair, x + r * K + k, sizeof pair);                              \
    __m256i input##r = _mm256_set1_epi32(pair);                             \
    left##r = _mm256_add_epi32(left##r, _mm256_madd_epi16(input##r, left)); \
    right##r = _mm256_add_epi32(right##r, _mm256_madd_epi16(input##r, right));
        SIX_TIMES(ROW)
#undef ROW
    }
#define ROW(r)                                                                              \
    __m256 size##r = _mm256_set1_ps(step[r]);                                               \
    _mm256_storeu_ps(sums + r * ROWS, _mm256_mul_ps(_mm256_cvtepi32_ps(left##r), size##r)); \
    _mm256_storeu_ps(sums + r * ROWS + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(right##r), size##r));
    SIX_TIMES(ROW)
#undef ROW
}
#else
static void dots(int n, const int16_t *x, const int8_t *w, long K, int32_t sums[][4]) {
    for (int c = 0; c < 4; c++) {
        sums[0][c] = 0;
        for (long k = 0; k < K; k++) sums[0][c] += x[k] * w[c * K + k];
    }
}
#endif

/* Outputs j to j+3 of n quantized inputs, at most AT_ONCE: y (n, 4). */
static inline void four(const Linear *l, long j, int n, const int16_t *q, const float *step,
                        float y[][4]) {
    int32_t sums[AT_ONCE][4];
    dots(n, q, l->weight + j * l->inputs, l->inputs, sums);
    for (int r = 0; r < n; r++)
        for (int c = 0; c < 4; c++) y[r][c] = sums[r][c] * step[r] * l->scale[j + c];
}

static inline int at_most(long n, int most) { return n < most ? n : most; }

/* Outputs j to j+3 of M inputs, put into y (M, outputs) or added to what is there. */
static void columns(const Linear *l, long j, const int16_t *q, const float *step, long M, float *y,
                    int add) {
    for (long i = 0; i < M; i += AT_ONCE) {
        float some[AT_ONCE][4];
        int n = at_most(M - i, AT_ONCE);
        four(l, j, n, q + i * l->inputs, step + i, some);
        for (int r = 0; r < n; r++)
            for (int c = 0; c < 4; c++) {
                float *to = y + (i + r) * l->outputs + j + c;
                *to = some[r][c] + (add ? *to : 0);
            }
    }
}

#ifdef __AVX2__
/* `linear` for MANY inputs: ROWS of the weight stay near, while all inputs pass by. */
static int many(const Linear *l, const float *x, float *y, long M) {
    long K = l->inputs, N = l->outputs, groups = groups_of(K), room = M + INPUTS;
    Quantized *q = calloc(room * K, sizeof *q);
    float *step = calloc(room * groups, sizeof *step);
    int failed = !q || !step;
#pragma omp parallel if (!failed)
    {
        char *wide = failed ? NULL : aligned_alloc(64, packed_bytes(K));
        if (!wide)
#pragma omp atomic write
            failed = 1;
#pragma omp barrier
#pragma omp for schedule(static)
        for (long i = 0; i < M; i++)
            if (!failed) quantize_many(x + i * K, K, q + i * K, step + i * groups);
#pragma omp for schedule(static)
        for (long j = 0; j < N; j += ROWS) {
            int rows = at_most(N - j, ROWS);
            if (failed) continue;
            pack(l->weight + j * K, rows, K, wide);
            for (long i = 0; i < M; i += INPUTS) {
                float sums[INPUTS * ROWS];
                tile(q + i * K, step + i * groups, wide, K, sums);
                for (int r = 0; r < at_most(M - i, INPUTS); r++)
                    for (int c = 0; c < rows; c++)
                        y[(i + r) * N + j + c] = sums[r * ROWS + c] * l->scale[j + c];
            }
        }
        free(wide);
    }
    free(q);
    free(step);
    return failed;
}
#endif

/* y = x Wᵀ. Shapes: x (M, inputs) -> y (M, outputs). Returns nonzero if memory has run out. */
int linear(const Linear *l, const float *x, float *y, long M) {
    long K = l->inputs, N = l->outputs;
#if defined __AVX512VNNI__
    if (M >= MANY && K % GROUP == 0) return many(l, x, y, M);
#elif defined __AVX2__
    if (M >= MANY) return many(l, x, y, M);
#endif
    int16_t *q = room_for(M * K * sizeof *q);
    float *step = room_for(M * sizeof *step);
    int failed = !q || !step;
    if (!failed) {
#pragma omp parallel
        {
#pragma omp for schedule(static)
            for (long i = 0; i < M; i++) step[i] = quantize(x + i * K, K, q + i * K);
#pragma omp for schedule(static)
            for (long j = 0; j < N; j += 4) columns(l, j, q, step, M, y, 0);
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
#pragma omp simd reduction(+ : squares)
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

/* Eight floats side by side, which need not be aligned. */
typedef float Eight __attribute__((vector_size(32), aligned(4)));
#define EIGHT(x) (*(const Eight *)(x))

static inline float dot(const float *x, const float *y, long d) {
    Eight a = {0}, b = {0};
    for (long i = 0; i < d; i += 16) {
        a += EIGHT(x + i) * EIGHT(y + i);
        b += EIGHT(x + i + 8) * EIGHT(y + i + 8);
    }
    a += b;
    return ((a[0] + a[4]) + (a[1] + a[5])) + ((a[2] + a[6]) + (a[3] + a[7]));
}

/* One query against `length` keys and values; its weights are left in `scores`. */
static void attend(const float *query, const float *keys, const float *values, long length, long d,
                   float *scores, float *y) {
    float most = -FLT_MAX, sum = 0, scale = 1 / sqrtf(d);
    for (long s = 0; s < length; s++) {
        scores[s] = dot(query, keys + s * d, d) * scale;
        most = scores[s] > most ? scores[s] : most;
    }
#pragma omp simd reduction(+ : sum)
    for (long s = 0; s < length; s++) sum += scores[s] = exponential(scores[s] - most);
    for (long i = 0; i < d; i += 16) {
        /* four positions at a time, since each sum must wait for its last addition */
        Eight left[4] = {{0}}, right[4] = {{0}};
        const float *value = values + i;
        long s = 0;
        for (; s + 4 <= length; s += 4, value += 4 * d)
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                left[k] += EIGHT(value + k * d) * scores[s + k];
                right[k] += EIGHT(value + k * d + 8) * scores[s + k];
            }
        for (; s < length; s++, value += d) {
            left[0] += EIGHT(value) * scores[s];
            right[0] += EIGHT(value + 8) * scores[s];
        }
        *(Eight *)(y + i) = ((left[0] + left[1]) + (left[2] + left[3])) / sum;
        *(Eight *)(y + i + 8) = ((right[0] + right[1]) + (right[2] + right[3])) / sum;
    }
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
    float *shared = room_for(T * (2 * H * d + 2 * K * d + F + D + 1 + H * seen) * sizeof *shared);
    int16_t *q = room_for(T * widest * sizeof *q);
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
        for (long j = 0; j < H * d; j += 4) columns(&b->q, j, q, step, T, query, 0);
#pragma omp for schedule(static) nowait
        for (long j = 0; j < K * d; j += 4) columns(&b->k, j, q, step, T, key, 0);
#pragma omp for schedule(static)
        for (long j = 0; j < K * d; j += 4) columns(&b->v, j, q, step, T, value, 0);
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
        for (long j = 0; j < D; j += 4) columns(&b->o, j, q, step, T, x, 1);
        prepare(x, b->feedforward_norm, b->eps, D, T, normed, q, step);
#pragma omp for schedule(static)
        for (long j = 0; j < F; j += 4)
            for (long t = 0; t < T; t += AT_ONCE) {
                float gate[AT_ONCE][4], up[AT_ONCE][4];
                int n = at_most(T - t, AT_ONCE);
                four(&b->gate, j, n, q + t * D, step + t, gate);
                four(&b->up, j, n, q + t * D, step + t, up);
                for (int r = 0; r < n; r++)
                    for (int c = 0; c < 4; c++)
                        hidden[(t + r) * F + j + c] =
                            gate[r][c] / (1 + exponential(-gate[r][c])) * up[r][c];
            }
        prepare(hidden, NULL, 0, F, T, NULL, q, step);
#pragma omp for schedule(static)
        for (long j = 0; j < D; j += 4) columns(&b->down, j, q, step, T, x, 1);
    }
    free(shared);
    free(q);
    return 0;
}
