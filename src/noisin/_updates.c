/* The optimizers' updates of a weight, element by element: the same arithmetic as MXNet's, in the same order.
 *
 * Called by optimizers.py. setup.py forbids fused multiply-add, whose rounding would not be MXNet's.
 */
#include <math.h>
#include <stdint.h>

#include "_vector.h"

/* Adam (Kingma and Ba, 2015), with the bias correction in `rate`. */
FOR_EACH_PROCESSOR
void noisin_adam(float *restrict weight, float *restrict mean, float *restrict variance,
                 const float *restrict gradient, int64_t size, float rate, float beta1, float beta2, float epsilon,
                 float decay, float rescale) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
        float g = gradient[i] * rescale + decay * weight[i];
        mean[i] = beta1 * mean[i] + (1.0f - beta1) * g;
        variance[i] = beta2 * variance[i] + (1.0f - beta2) * g * g;
        weight[i] -= rate * mean[i] / (sqrtf(variance[i]) + epsilon);
    }
}

/* Stochastic gradient descent. */
FOR_EACH_PROCESSOR
void noisin_sgd(float *restrict weight, const float *restrict gradient, int64_t size, float rate, float decay,
                float rescale) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++)
        weight[i] += -(rate * decay * weight[i]) - rate * rescale * gradient[i];
}
