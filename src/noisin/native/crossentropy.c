/* Softmax, cross-entropy and their gradient in one pass over the logits, which the gradient then replaces.
 *
 * Called by crossentropy.py. Plain C that compilers turn into vector instructions (-fopenmp-simd lets them reorder a
 * sum), with NaN and infinity kept: such a logit makes its whole row of the gradient NaN.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "vector.h"

/* To the nearest bfloat16, to the even one of two that are as near; NaN stays NaN. */
static inline uint16_t to_bfloat16(float value) {
    uint32_t bits = to_bits(value);
    return value != value ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

/* For each of `rows` rows of `product` (rows x size, float, or bfloat16 as uint16_t if `half`), with b = `bias`:
 *
 *   log_p[row] = log softmax(product[row] + b)[targets[row]]
 *   product[row] = weight * (softmax(product[row] + b) - onehot(targets[row]))
 *   bias_gradient += product[row]    (before it is rounded)
 *
 * `buffer` has place for `size` floats.
 */
FOR_EACH_PROCESSOR
static void cross_entropy_of_rows(void *product, int half, const float *restrict bias, const int32_t *restrict targets,
                                  float weight, int64_t rows, int64_t size, float *restrict buffer,
                                  float *restrict log_p, float *restrict bias_gradient) {
    for (int64_t row = 0; row < rows; row++) {
        float *restrict full = (float *)product + row * size;
        uint16_t *restrict halves = (uint16_t *)product + row * size;
        float highest = -INFINITY, sum = 0.0f;
        if (half) {
#pragma omp simd reduction(max : highest)
            for (int64_t i = 0; i < size; i++) {
                buffer[i] = from_bits((uint32_t)halves[i] << 16) + bias[i];
                highest = buffer[i] > highest ? buffer[i] : highest;
            }
        } else {
#pragma omp simd reduction(max : highest)
            for (int64_t i = 0; i < size; i++) {
                buffer[i] = full[i] + bias[i];
                highest = buffer[i] > highest ? buffer[i] : highest;
            }
        }
        int32_t target = targets[row];
        float logit = buffer[target];
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; i++) {
            buffer[i] = exponential(buffer[i] - highest);
            sum += buffer[i];
        }
        log_p[row] = logit - highest - logf(sum);
        float scale = weight / sum;
        buffer[target] -= sum; /* times scale it is p - 1 */
        if (half) {
#pragma omp simd
            for (int64_t i = 0; i < size; i++) {
                float gradient = buffer[i] * scale;
                bias_gradient[i] += gradient;
                halves[i] = to_bfloat16(gradient);
            }
        } else {
#pragma omp simd
            for (int64_t i = 0; i < size; i++) {
                float gradient = buffer[i] * scale;
                bias_gradient[i] += gradient;
                full[i] = gradient;
            }
        }
    }
}

/* For each of `rows` rows of `product`, as above: product[row] *= weights[row]; sums += product[row], before rounding. */
FOR_EACH_PROCESSOR
static void scale_some_rows(void *product, int half, const float *restrict weights, int64_t rows, int64_t size,
                            float *restrict sums) {
    for (int64_t row = 0; row < rows; row++) {
        float *restrict full = (float *)product + row * size;
        uint16_t *restrict halves = (uint16_t *)product + row * size;
        float weight = weights[row];
        if (half) {
#pragma omp simd
            for (int64_t i = 0; i < size; i++) {
                float scaled = from_bits((uint32_t)halves[i] << 16) * weight;
                sums[i] += scaled;
                halves[i] = to_bfloat16(scaled);
            }
        } else {
#pragma omp simd
            for (int64_t i = 0; i < size; i++) {
                full[i] *= weight;
                sums[i] += full[i];
            }
        }
    }
}

/* What crossentropy.py gives, field by field; `scratch` has place for two rows for each of `parts`. */
struct cross_entropy {
    void *product;
    float *bias;
    int32_t *targets;
    float *scratch, *log_p, *bias_gradient;
    int64_t half, rows, size, parts;
    float weight;
};

/* As `cross_entropy`; `scratch` has place for one row for each of `parts`. */
struct scale_rows {
    void *product;
    float *weights, *scratch, *sums;
    int64_t half, rows, size, parts;
};

/* sums = the sum of `parts` rows, which are `stride` floats apart. */
static void add_up(const float *parts_of_sums, int64_t parts, int64_t stride, int64_t size, float *sums) {
    memset(sums, 0, sizeof(float) * (size_t)size);
    for (int64_t part = 0; part < parts; part++)
        for (int64_t i = 0; i < size; i++)
            sums[i] += parts_of_sums[part * stride + i];
}

/* All rows, in parts that threads do at the same time; `context` is the engine's. */
void noisin_cross_entropy(void *context, void *given) {
    const struct cross_entropy *task = given;
    int64_t size = task->size, bytes = task->half ? 2 : 4;
    (void)context;
#pragma omp parallel for schedule(static, 1)
    for (int64_t part = 0; part < task->parts; part++) {
        int64_t start = task->rows * part / task->parts, end = task->rows * (part + 1) / task->parts;
        float *buffer = task->scratch + 2 * part * size, *gradient = buffer + size;
        memset(gradient, 0, sizeof(float) * (size_t)size);
        cross_entropy_of_rows((char *)task->product + start * size * bytes, task->half != 0, task->bias,
                              task->targets + start, task->weight, end - start, size, buffer, task->log_p + start,
                              gradient);
    }
    add_up(task->scratch + size, task->parts, 2 * size, size, task->bias_gradient);
}

void noisin_scale_rows(void *context, void *given) {
    const struct scale_rows *task = given;
    int64_t size = task->size, bytes = task->half ? 2 : 4;
    (void)context;
    memset(task->scratch, 0, sizeof(float) * (size_t)(task->parts * size));
#pragma omp parallel for schedule(static, 1)
    for (int64_t part = 0; part < task->parts; part++) {
        int64_t start = task->rows * part / task->parts, end = task->rows * (part + 1) / task->parts;
        scale_some_rows((char *)task->product + start * size * bytes, task->half != 0, task->weights + start,
                        end - start, size, task->scratch + part * size);
    }
    add_up(task->scratch, task->parts, size, size, task->sums);
}
