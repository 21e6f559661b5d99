/* The optimizers' updates of a weight, element by element: the same arithmetic as MXNet's, in the same order.
 *
 * Called by optimizers.py. setup.py forbids fused multiply-add, whose rounding would not be MXNet's.
 */
#include <math.h>
#include <stdint.h>

#include "vector.h"

#define PIECE 65536 /* numbers that one thread updates at a time */

/* What optimizers.py gives, field by field. */
struct adam {
    float *weight, *mean, *variance, *gradient;
    int64_t size;
    float rate, beta1, beta2, epsilon, decay, rescale;
};

struct sgd {
    float *weight, *gradient;
    int64_t size;
    float rate, decay, rescale;
};

FOR_EACH_PROCESSOR
static void adam_piece(float *restrict weight, float *restrict mean, float *restrict variance,
                       const float *restrict gradient, int64_t size, float rate, float beta1, float beta2,
                       float epsilon, float decay, float rescale) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
        float g = gradient[i] * rescale + decay * weight[i];
        mean[i] = beta1 * mean[i] + (1.0f - beta1) * g;
        variance[i] = beta2 * variance[i] + (1.0f - beta2) * g * g;
        weight[i] -= rate * mean[i] / (sqrtf(variance[i]) + epsilon);
    }
}

FOR_EACH_PROCESSOR
static void sgd_piece(float *restrict weight, const float *restrict gradient, int64_t size, float rate, float decay,
                      float rescale) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++)
        weight[i] += -(rate * decay * weight[i]) - rate * rescale * gradient[i];
}

/* Of the piece that begins at `start`. */
static int64_t length(int64_t start, int64_t size) { return size - start < PIECE ? size - start : PIECE; }

/* Adam (Kingma and Ba, 2015), with the bias correction in `rate`; `context` is the engine's. */
void noisin_adam(void *context, void *given) {
    const struct adam *t = given;
    (void)context;
#pragma omp parallel for
    for (int64_t i = 0; i < t->size; i += PIECE)
        adam_piece(t->weight + i, t->mean + i, t->variance + i, t->gradient + i, length(i, t->size), t->rate,
                   t->beta1, t->beta2, t->epsilon, t->decay, t->rescale);
}

/* Stochastic gradient descent. */
void noisin_sgd(void *context, void *given) {
    const struct sgd *t = given;
    (void)context;
#pragma omp parallel for
    for (int64_t i = 0; i < t->size; i += PIECE)
        sgd_piece(t->weight + i, t->gradient + i, length(i, t->size), t->rate, t->decay, t->rescale);
}
