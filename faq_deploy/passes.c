/* Passes over float32 tensors that torch makes of several operations, here in one, with the same bits.

   A product and a sum are one fused multiply-add where torch's kernels have one. Compile with -ffp-contract=off, so
   that there is none elsewhere. Whether the bits are torch's is tried when the library is loaded: see compiled.py. */

#include <math.h>
#include <stdint.h>

/* Tensors smaller than this are not worth a second thread. */
#define SMALL 32768

static inline float on_grid(float steps, float lowest, float highest) {
    steps = rintf(steps);
    steps = lowest > steps ? lowest : steps; /* this way round NaN stays NaN */
    return highest < steps ? highest : steps;
}

static inline float inside(float value, float given, float low, float high) {
    return value > low && value < high ? given : 0.0f;
}

/* x*a + b of batch norm by given mean and variance: aten/src/ATen/native/cpu/batch_norm_kernel.cpp */
void coefficients(const float *weight, const float *bias, const float *mean, const float *var, float *a, float *b,
                  int64_t channels) {
    for (int64_t c = 0; c < channels; c++) {
        a[c] = 1 / sqrtf(var[c]) * weight[c];
        b[c] = fmaf(-mean[c], a[c], bias[c]);
    }
}

/* Rows of `length` numbers. Channels come last: `channels` of a row's numbers have one coefficient each. Else: each row
   is one channel, and the next row is the next channel. */
#define ROWS(BODY_LAST, BODY_FIRST)                                                                                    \
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (rows * length > SMALL)")                       \
    for (int64_t row = 0; row < rows; row++) {                                                                         \
        const int64_t start = row * length;                                                                            \
        if (last) {                                                                                                    \
            for (int64_t i = 0; i < length; i++) { BODY_LAST }                                                         \
        } else {                                                                                                       \
            const float factor = a[row % channels], offset = b[row % channels];                                        \
            for (int64_t i = 0; i < length; i++) { BODY_FIRST }                                                        \
        }                                                                                                              \
    }

/* out = x*a + b */
void affine(const float *restrict x, float *restrict out, const float *restrict a, const float *restrict b,
            int64_t rows, int64_t length, int64_t channels, int last, int threads) {
    ROWS(out[start + i] = fmaf(x[start + i], a[i], b[i]);, out[start + i] = fmaf(x[start + i], factor, offset);)
}

/* out = grid(x*a + b + other/step): a and b are divided by step already. */
void quantize(const float *restrict x, const float *restrict other, float *restrict out, const float *restrict a,
              const float *restrict b, int64_t rows, int64_t length, int64_t channels, int last, float inverse_step,
              float lowest, float highest, float step, int threads) {
    if (other) {
        ROWS(out[start + i] = step * on_grid(fmaf(other[start + i], inverse_step, fmaf(x[start + i], a[i], b[i])),
                                             lowest, highest);
             , out[start + i] = step * on_grid(fmaf(other[start + i], inverse_step, fmaf(x[start + i], factor, offset)),
                                               lowest, highest);)
    } else {
        ROWS(out[start + i] = step * on_grid(fmaf(x[start + i], a[i], b[i]), lowest, highest);
             , out[start + i] = step * on_grid(fmaf(x[start + i], factor, offset), lowest, highest);)
    }
}

/* out = given where low < x*a + b + other < high, else 0. */
void pass_inside(const float *restrict x, const float *restrict other, const float *restrict given, float *restrict out,
                 const float *restrict a, const float *restrict b, int64_t rows, int64_t length, int64_t channels,
                 int last, float low, float high, int threads) {
    if (other) {
        ROWS(out[start + i] = inside(fmaf(x[start + i], a[i], b[i]) + other[start + i], given[start + i], low, high);
             , out[start + i] = inside(fmaf(x[start + i], factor, offset) + other[start + i], given[start + i], low,
                                       high);)
    } else {
        ROWS(out[start + i] = inside(fmaf(x[start + i], a[i], b[i]), given[start + i], low, high);
             , out[start + i] = inside(fmaf(x[start + i], factor, offset), given[start + i], low, high);)
    }
}

/* out = grid(x), each number by itself. */
void quantize_numbers(const float *restrict x, float *restrict out, int64_t count, float inverse_step, float lowest,
                      float highest, float step, int threads) {
    _Pragma("omp parallel for simd num_threads(threads) schedule(static) if (count > SMALL)")
    for (int64_t i = 0; i < count; i++) out[i] = step * on_grid(x[i] * inverse_step, lowest, highest);
}

/* Rows of a weight, times their factors if there are any, on their grids. */
void quantize_rows(const float *restrict weight, const float *restrict factors, const float *restrict inverse_steps,
                   const float *restrict steps, float *restrict out, int64_t rows, int64_t length, float lowest,
                   float highest, int threads) {
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (rows * length > SMALL)")
    for (int64_t row = 0; row < rows; row++) {
        const float *x = weight + row * length;
        float *y = out + row * length;
        const float factor = factors ? factors[row] : 1.0f, inverse = inverse_steps[row], step = steps[row];
        for (int64_t i = 0; i < length; i++) y[i] = step * on_grid(x[i] * factor * inverse, lowest, highest);
    }
}
