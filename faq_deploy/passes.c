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

/* x*a + b of batch norm by given mean and variance, in steps: aten/src/ATen/native/cpu/batch_norm_kernel.cpp */
void coefficients(const float *weight, const float *bias, const float *mean, const float *var, float *a, float *b,
                  float inverse_step, int64_t channels) {
    for (int64_t c = 0; c < channels; c++) {
        a[c] = 1 / sqrtf(var[c]) * (weight[c] * inverse_step);
        b[c] = fmaf(-mean[c], a[c], bias[c] * inverse_step);
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

/* out = grid(x), each number by itself; where it is asked for, whether low < x < high, for the gradient. */
void quantize_numbers(const float *restrict x, float *restrict out, uint8_t *restrict passing, int64_t count,
                      float inverse_step, float lowest, float highest, float step, float low, float high, int threads) {
    if (passing) {
        _Pragma("omp parallel for simd num_threads(threads) schedule(static) if (count > SMALL)")
        for (int64_t i = 0; i < count; i++) {
            out[i] = step * on_grid(x[i] * inverse_step, lowest, highest);
            passing[i] = (x[i] > low) & (x[i] < high);
        }
    } else {
        _Pragma("omp parallel for simd num_threads(threads) schedule(static) if (count > SMALL)")
        for (int64_t i = 0; i < count; i++) out[i] = step * on_grid(x[i] * inverse_step, lowest, highest);
    }
}

/* out = given where it passes, else 0. */
void pass_on(const float *restrict given, const uint8_t *restrict passing, float *restrict out, int64_t count,
             int threads) {
    _Pragma("omp parallel for simd num_threads(threads) schedule(static) if (count > SMALL)")
    for (int64_t i = 0; i < count; i++) out[i] = passing[i] ? given[i] : 0.0f;
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

/* Rows of channels first, `length` numbers each: of every channel the mean and the mean square about it, summed in
   double in the order of aten/src/ATen/native/cpu/batch_norm_kernel.cpp. There one sum waits for the one before; here
   several channels' sums go on at once. */
#define TOGETHER 8

static inline void sums_of(const float *restrict first, int64_t images, int64_t channels, int64_t length, int together,
                           const float *means, double *sums) {
    for (int j = 0; j < together; j++) sums[j] = 0;
    for (int64_t image = 0; image < images; image++) {
        const float *rows = first + image * channels * length;
        for (int64_t i = 0; i < length; i++) {
            for (int j = 0; j < together; j++) {
                const float x = rows[j * length + i], off = means ? x - means[j] : 1;
                sums[j] += means ? off * off : x;
            }
        }
    }
}

static inline void statistics_of(const float *x, float *mean, float *var, int64_t images, int64_t channels,
                                 int64_t length, int together) {
    double sums[TOGETHER];
    sums_of(x, images, channels, length, together, 0, sums);
    for (int j = 0; j < together; j++) mean[j] = sums[j] / (images * length);
    sums_of(x, images, channels, length, together, mean, sums);
    for (int j = 0; j < together; j++) var[j] = (float)sums[j] / (images * length);
}

void statistics(const float *restrict x, float *restrict mean, float *restrict var, int64_t images, int64_t channels,
                int64_t length, int threads) {
    const int64_t whole = channels / TOGETHER;
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (images * channels * length > SMALL)")
    for (int64_t part = 0; part < whole + channels % TOGETHER; part++) {
        const int alone = part >= whole;
        const int64_t c = alone ? whole * TOGETHER + part - whole : part * TOGETHER;
        if (alone) statistics_of(x + c * length, mean + c, var + c, images, channels, length, 1);
        else statistics_of(x + c * length, mean + c, var + c, images, channels, length, TOGETHER);
    }
}

/* Windows along one axis: `count` of them, each of `kernel` positions, some of which may lie before or behind the
   `size` positions that there are. */
typedef struct {
    int64_t size, count, kernel, stride, padding;
} Axis;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t start_of(const Axis *axis, int64_t window) { return window * axis->stride - axis->padding; }

/* Outputs that are found together, in registers and the first cache. */
#define CHUNK 256

typedef struct {
    float value[CHUNK];
    int32_t place[CHUNK]; /* of the value in its window */
} Largest;

/* One place of `count` windows, `stride` numbers apart: a larger number takes over, and so does NaN. */
static inline void compare(Largest *largest, int64_t first, int64_t count, const float *numbers, int64_t stride,
                           int32_t place) {
    float *restrict value = largest->value + first;
    int32_t *restrict at = largest->place + first;
    for (int64_t i = 0; i < count; i++) {
        const float number = numbers[i * stride];
        const int larger = (number > value[i]) | (number != number);
        value[i] = larger ? number : value[i];
        at[i] = larger ? place : at[i];
    }
}

static inline void hand_over(const Largest *largest, int64_t count, float *restrict out, uint8_t *restrict places) {
    for (int64_t i = 0; i < count; i++) out[i] = largest->value[i];
    if (places) {
        for (int64_t i = 0; i < count; i++) places[i] = (uint8_t)largest->place[i];
    }
}

/* A row of windows of one channel. */
static void largest_first(const float *image, int64_t row, const Axis *y, const Axis *x, float *out, uint8_t *places) {
    const int64_t top = start_of(y, row), above = most(0, -top), below = least(y->kernel, y->size - top);
    for (int64_t from = 0; from < x->count; from += CHUNK) {
        Largest largest;
        const int64_t to = least(from + CHUNK, x->count);
        for (int64_t i = from; i < to; i++) {
            largest.value[i - from] = -INFINITY;
            largest.place[i - from] = (int32_t)(above * x->kernel + most(0, -start_of(x, i)));
        }
        for (int64_t ky = above; ky < below; ky++) {
            const float *line = image + (top + ky) * x->size;
            for (int64_t kx = 0; kx < x->kernel; kx++) {
                const int64_t before = x->padding - kx; /* windows whose place kx lies inside: */
                const int64_t low = most(from, before > 0 ? (before + x->stride - 1) / x->stride : 0);
                const int64_t high = least(to, x->size - 1 + before < 0 ? 0 : (x->size - 1 + before) / x->stride + 1);
                const float *numbers = line + start_of(x, low) + kx;
                const int32_t place = (int32_t)(ky * x->kernel + kx);
                if (x->stride == 1) compare(&largest, low - from, high - low, numbers, 1, place);
                else if (x->stride == 2) compare(&largest, low - from, high - low, numbers, 2, place);
                else compare(&largest, low - from, high - low, numbers, x->stride, place);
            }
        }
        hand_over(&largest, to - from, out + from, places ? places + from : 0);
    }
}

/* One window of all channels, which come last. */
static void largest_last(const float *image, int64_t row, int64_t column, const Axis *y, const Axis *x,
                         int64_t channels, float *out, uint8_t *places) {
    const int64_t top = start_of(y, row), above = most(0, -top), below = least(y->kernel, y->size - top);
    const int64_t left = start_of(x, column), before = most(0, -left), behind = least(x->kernel, x->size - left);
    for (int64_t from = 0; from < channels; from += CHUNK) {
        Largest largest;
        const int64_t count = least(CHUNK, channels - from);
        for (int64_t i = 0; i < count; i++) {
            largest.value[i] = -INFINITY;
            largest.place[i] = (int32_t)(above * x->kernel + before);
        }
        for (int64_t ky = above; ky < below; ky++) {
            for (int64_t kx = before; kx < behind; kx++) {
                const float *numbers = image + ((top + ky) * x->size + left + kx) * channels + from;
                compare(&largest, 0, count, numbers, 1, (int32_t)(ky * x->kernel + kx));
            }
        }
        hand_over(&largest, count, out + from, places ? places + from : 0);
    }
}

/* The largest number of each window, and which of the window's places it had, for the gradient.
   images: where channels come first, images times channels, and `channels` is 1. */
void largest(const float *restrict in, float *restrict out, uint8_t *restrict places, int64_t images, int64_t channels,
             const Axis *y, const Axis *x, int threads) {
    const int64_t row_length = x->count * channels;
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (images * y->count * row_length > SMALL)")
    for (int64_t line = 0; line < images * y->count; line++) {
        const float *image = in + line / y->count * y->size * x->size * channels;
        const int64_t row = line % y->count, at = line * row_length;
        if (channels == 1) {
            largest_first(image, row, y, x, out + at, places ? places + at : 0);
            continue;
        }
        for (int64_t column = 0; column < x->count; column++) {
            const int64_t there = at + column * channels;
            largest_last(image, row, column, y, x, channels, out + there, places ? places + there : 0);
        }
    }
}

/* The gradient of `largest`: each window's goes to the place that it took its number from. */
void largest_backward(const float *restrict given, const uint8_t *restrict places, float *restrict out, int64_t images,
                      int64_t channels, const Axis *y, const Axis *x, int threads) {
    const int64_t size = y->size * x->size * channels;
    int64_t offsets[256];
    for (int64_t place = 0; place < y->kernel * x->kernel; place++) {
        offsets[place] = (place / x->kernel * x->size + place % x->kernel) * channels;
    }
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (images * size > SMALL)")
    for (int64_t image = 0; image < images; image++) {
        float *numbers = out + image * size;
        for (int64_t i = 0; i < size; i++) numbers[i] = 0;
        int64_t at = image * y->count * x->count * channels;
        for (int64_t row = 0; row < y->count; row++) {
            for (int64_t column = 0; column < x->count; column++) {
                const int64_t corner = (start_of(y, row) * x->size + start_of(x, column)) * channels;
                for (int64_t c = 0; c < channels; c++, at++) numbers[corner + offsets[places[at]] + c] += given[at];
            }
        }
    }
}

/* What rounding does to rows of a weight, in steps: out = grid(x) - x. */
void residuals(const float *restrict weight, const float *restrict inverse_steps, float *restrict out, int64_t rows,
               int64_t length, float lowest, float highest, int threads) {
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (rows * length > SMALL)")
    for (int64_t row = 0; row < rows; row++) {
        const float *x = weight + row * length, inverse = inverse_steps[row];
        float *y = out + row * length;
        for (int64_t i = 0; i < length; i++) {
            const float scaled = x[i] * inverse;
            y[i] = on_grid(scaled, lowest, highest) - scaled;
        }
    }
}

/* The gradient of a batch norm by the batch's statistics, of what passed the quantizer behind it and the addition
   before that: aten/src/ATen/native/cpu/batch_norm_kernel.cpp, with its order of sums. */
typedef struct {
    const float *x, *other, *given; /* other: null for none */
    float *passed;                  /* what passes the quantizer; null where nobody asks for it */
    float *out;                     /* the gradient of x */
    const float *a, *b;             /* x*a + b is what the quantizer reads, before the addition */
    const float *weight, *mean, *scale;
    float *of_weight, *of_bias;
    int64_t images, channels, length;
    float low, high; /* the gradient passes between them */
} Gradient;

/* One number's way back through the batch norm. fused: whether torch's compiler made a product and a sum one there. */
static inline float through(float x, float passed, float mean, float scale, float weight, float slope, float shift,
                            int fused) {
    const float centred = passed - shift, off = x - mean;
    return (fused ? fmaf(-off, slope, centred) : centred - off * slope) * scale * weight;
}

/* Lanes of a vector of torch's, of which a row's sums are made. */
typedef struct {
    float sum[16], product[16];
} Lanes;

/* What passes of `count` numbers, each for its lane. */
static inline void lanes_of(const float *restrict x, const float *restrict other, const float *restrict given,
                            float *restrict passed, Lanes *lanes, int64_t count, int begin, int fused, float factor,
                            float offset, float mean, float low, float high) {
    for (int64_t lane = 0; lane < count; lane++) {
        const float value = fmaf(x[lane], factor, offset), off = x[lane] - mean;
        const float p = inside(other ? value + other[lane] : value, given[lane], low, high);
        passed[lane] = p;
        lanes->sum[lane] = begin ? p : lanes->sum[lane] + p;
        const float before = lanes->product[lane];
        lanes->product[lane] = begin ? off * p : fused ? fmaf(off, p, before) : before + off * p;
    }
}

/* Sums over a row as vectors of `width` numbers have them: one in each lane, then halves together. */
static inline void row_sums(const Gradient *g, float *kept, int64_t start, int64_t c, int added, int width, float *sum,
                            float *product) {
    const float factor = g->a[c], offset = g->b[c], mean = g->mean[c], low = g->low, high = g->high;
    const float *x = g->x + start, *other = added ? g->other + start : 0, *given = g->given + start;
    const int64_t length = g->length, whole = length - length % width;
    float *passed = kept + start;
    Lanes lanes;
    for (int64_t i = 0; i < whole; i += width) {
        lanes_of(x + i, added ? other + i : 0, given + i, passed + i, &lanes, width, i == 0, 0, factor, offset, mean,
                 low, high);
    }
    lanes_of(x + whole, added ? other + whole : 0, given + whole, passed + whole, &lanes, length - whole, whole == 0, 1,
             factor, offset, mean, low, high);
    if (whole) {
        for (int half = width / 2; half; half /= 2) {
            for (int lane = 0; lane < half; lane++) {
                lanes.sum[lane] += lanes.sum[lane + half];
                lanes.product[lane] += lanes.product[lane + half];
            }
        }
    } else {
        for (int64_t lane = 1; lane < length; lane++) {
            lanes.sum[0] += lanes.sum[lane];
            lanes.product[0] += lanes.product[lane];
        }
    }
    *sum = lanes.sum[0];
    *product = lanes.product[0];
}

static inline void channel_gradient(const Gradient *g, int64_t c, int added, int width) {
    float *kept = g->passed ? g->passed : g->out;
    double sum = 0, product = 0;
    for (int64_t image = 0; image < g->images; image++) {
        float of_row, product_of_row;
        row_sums(g, kept, (image * g->channels + c) * g->length, c, added, width, &of_row, &product_of_row);
        sum += of_row;
        product += product_of_row;
    }
    const float mean = g->mean[c], scale = g->scale[c], weight = g->weight[c];
    const int64_t count = g->images * g->length, length = g->length;
    const float slope = (float)product * scale * scale / count, shift = sum / count;
    for (int64_t image = 0; image < g->images; image++) {
        const int64_t start = (image * g->channels + c) * length;
        const float *restrict x = g->x + start, *restrict passed = g->passed + start;
        float *restrict out = g->out + start;
        if (g->passed) {
            for (int64_t i = 0; i < length; i++) out[i] = through(x[i], passed[i], mean, scale, weight, slope, shift, 1);
        } else {
            for (int64_t i = 0; i < length; i++) out[i] = through(x[i], out[i], mean, scale, weight, slope, shift, 1);
        }
    }
    g->of_weight[c] = product * scale;
    g->of_bias[c] = sum;
}

/* Channels first. width: numbers in a vector of torch's, 8 or 16. */
void gradient_first(const Gradient *g, int width, int threads) {
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (g->images * g->channels * g->length > SMALL)")
    for (int64_t c = 0; c < g->channels; c++) {
        if (width == 8) {
            if (g->other) channel_gradient(g, c, 1, 8);
            else channel_gradient(g, c, 0, 8);
        } else {
            if (g->other) channel_gradient(g, c, 1, 16);
            else channel_gradient(g, c, 0, 16);
        }
    }
}

/* What passes of rows of channels that come last, and its sums. */
static inline void rows_sums(const Gradient *g, int64_t first, int64_t end, int added, float *restrict sums,
                             float *restrict products) {
    const float *restrict a = g->a, *restrict b = g->b, *restrict mean = g->mean;
    const float low = g->low, high = g->high;
    float *kept = g->passed ? g->passed : g->out;
    const int64_t channels = g->channels;
    for (int64_t row = first; row < end; row++) {
        const int64_t start = row * channels;
        const float *restrict x = g->x + start, *restrict given = g->given + start;
        const float *restrict other = added ? g->other + start : 0;
        float *restrict passed = kept + start;
        for (int64_t c = 0; c < channels; c++) {
            const float value = fmaf(x[c], a[c], b[c]);
            const float p = inside(added ? value + other[c] : value, given[c], low, high);
            passed[c] = p;
            sums[c] += p;
            products[c] = fmaf(x[c] - mean[c], p, products[c]);
        }
    }
}

/* A row of channels that come last, from `first` to `end`. */
static inline void through_row(const Gradient *g, int64_t row, int64_t first, int64_t end, const float *restrict slope,
                               const float *restrict shift, int fused) {
    const float *restrict mean = g->mean, *restrict scale = g->scale, *restrict weight = g->weight;
    const float *restrict x = g->x + row * g->channels, *restrict passed = g->passed + row * g->channels;
    float *restrict out = g->out + row * g->channels;
    if (g->passed) {
        for (int64_t c = first; c < end; c++) {
            out[c] = through(x[c], passed[c], mean[c], scale[c], weight[c], slope[c], shift[c], fused);
        }
    } else {
        for (int64_t c = first; c < end; c++) {
            out[c] = through(x[c], out[c], mean[c], scale[c], weight[c], slope[c], shift[c], fused);
        }
    }
}

/* Channels last. width: as above; sums: zeros, (2, threads, channels). */
void gradient_last(const Gradient *g, float *sums, int width, int threads) {
    const int64_t count = g->images * g->length, channels = g->channels;
    const int64_t parts = least(threads, count), rows = (count + parts - 1) / parts;
    float *products = sums + threads * channels;
    _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (count * channels > SMALL)")
    for (int64_t part = 0; part < parts; part++) {
        const int64_t first = part * rows, end = least(first + rows, count);
        if (g->other) rows_sums(g, first, end, 1, sums + part * channels, products + part * channels);
        else rows_sums(g, first, end, 0, sums + part * channels, products + part * channels);
    }
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0, product = 0;
        for (int64_t part = 0; part < threads; part++) {
            sum += sums[part * channels + c];
            product += products[part * channels + c];
        }
        g->of_bias[c] = sum;
        g->of_weight[c] = (float)product * g->scale[c];
        sums[c] = (float)sum / count;
        products[c] = (float)product * g->scale[c] * g->scale[c] / count;
    }
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (count * channels > SMALL)")
    for (int64_t row = 0; row < count; row++) {
        through_row(g, row, 0, channels - channels % width, products, sums, 1);
        through_row(g, row, channels - channels % width, channels, products, sums, 0);
    }
}
