/* Prints what noisin's compiled functions give for inputs made here: "NAME VALUE" a line, VALUE exactly, as %a. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 6, SIZE = 1003, COUNT = 100003 }; /* no multiples of a vector's length; several of the updates' pieces */

void noisin_normals(float *, int64_t, uint32_t, uint32_t);
void noisin_cross_entropy(void *, void *);
void noisin_scale_rows(void *, void *);
void noisin_adam(void *, void *);
void noisin_sgd(void *, void *);

/* As mxnet/lib_api.h declares them, as far as they are used here. */
typedef void step(void);
void _opRegGet(int, const char **, int *, const char ***, step ***, int *, const char ***, step ***, int *,
               const char ***, void **, int *, void **, void **, void **, void **, void **);
int _opCallFCompute(step *, const char *const *, const char *const *, int, const int64_t **, int *, void **, int *,
                    size_t *, const char **, int *, int, const int64_t **, int *, void **, int *, size_t *,
                    const char **, int *, int);

static void print(const char *name, const float *values, int64_t count, int64_t step) {
    for (int64_t i = 0; i < count; i += step)
        printf("%s %a\n", name, values[i]);
}

static float *draws(int64_t count, uint32_t key) { /* the same bits everywhere: sums of eight whole numbers */
    float *values = malloc(sizeof(float) * (size_t)count);
    uint32_t state = key;
    for (int64_t i = 0; i < count; i++) {
        int32_t sum = 0;
        for (int part = 0; part < 8; part++)
            sum += (int32_t)((state = state * 1664525u + 1013904223u) >> 16) - 32768;
        values[i] = (float)sum / 65536.0f;
    }
    return values;
}

static void cross_entropy(int64_t half) {
    float *logits = draws(ROWS * SIZE, 1), *bias = draws(SIZE, 2), log_p[ROWS], gradient[SIZE], scratch[4 * SIZE];
    uint16_t *halves = (uint16_t *)logits;
    int32_t targets[ROWS] = {0, 1, 2, 500, 1001, 1002};
    struct {
        void *product;
        float *bias;
        int32_t *targets;
        float *scratch, *log_p, *bias_gradient;
        int64_t half, rows, size, parts;
        float weight;
    } task = {logits, bias, targets, scratch, log_p, gradient, half, ROWS, SIZE, 2, 0.5f};
    for (int64_t i = 0; half && i < ROWS * SIZE; i++)
        memcpy(halves + i, (char *)(logits + i) + 2, 2); /* the upper half of a little-endian float */
    noisin_cross_entropy(NULL, &task);
    print(half ? "log_p_half" : "log_p", log_p, ROWS, 1);
    print(half ? "bias_gradient_half" : "bias_gradient", gradient, SIZE, 1);
    for (int64_t i = 0; half && i < ROWS * SIZE; i++)
        printf("gradient_half %a\n", (double)halves[i]); /* its bits */
    if (!half)
        print("gradient", logits, ROWS * SIZE, 1);
    float weights[ROWS] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f};
    struct {
        void *product;
        float *weights, *scratch, *sums;
        int64_t half, rows, size, parts;
    } scaling = {logits, weights, scratch, gradient, half, ROWS, SIZE, 2};
    noisin_scale_rows(NULL, &scaling);
    print(half ? "sums_half" : "sums", gradient, SIZE, 1);
    for (int64_t i = 0; half && i < ROWS * SIZE; i++)
        printf("scaled_half %a\n", (double)halves[i]);
    if (!half)
        print("scaled", logits, ROWS * SIZE, 1);
}

/* Forward and backward of the LSTM's step. */
static void lstm(void) {
    enum { UNITS = 37 };
    const char *name, **devices;
    int number;
    step **forward, **backward;
    void *unused;
    int64_t wide[] = {ROWS, 4 * UNITS}, narrow[] = {ROWS, UNITS};
    const int64_t *inputs[] = {wide, wide, narrow}, *outputs[] = {narrow, narrow};
    void *read[7], *gradients[3]; /* the outputs' gradients, the inputs and the outputs, as the backward pass reads them */
    _opRegGet(0, &name, &number, &devices, &forward, &number, &devices, &backward, &number, &devices, &unused, &number,
              &unused, &unused, &unused, &unused, &unused);
    for (int i = 0; i < 7; i++)
        read[i] = draws(4 * ROWS * UNITS, 10 + (uint32_t)i);
    for (int i = 0; i < 3; i++)
        gradients[i] = draws(4 * ROWS * UNITS, 20);
    _opCallFCompute(*forward, NULL, NULL, 0, inputs, NULL, read + 2, NULL, NULL, NULL, NULL, 3, outputs, NULL, read + 5,
                    NULL, NULL, NULL, NULL, 2);
    _opCallFCompute(*backward, NULL, NULL, 0, NULL, NULL, read, NULL, NULL, NULL, NULL, 7, inputs, NULL, gradients,
                    NULL, NULL, NULL, NULL, 3);
    print("lstm_hidden", read[5], ROWS * UNITS, 1);
    print("lstm_memory", read[6], ROWS * UNITS, 1);
    print("lstm_projected_gradient", gradients[0], 4 * ROWS * UNITS, 1);
    print("lstm_recurrent_gradient", gradients[1], 4 * ROWS * UNITS, 1);
    print("lstm_memory_gradient", gradients[2], ROWS * UNITS, 1);
}

int main(void) {
    float *normals = malloc(sizeof(float) * COUNT);
    float *weight = draws(COUNT, 3), *mean = draws(COUNT, 4), *variance = draws(COUNT, 5), *gradient = draws(COUNT, 6);
    for (int64_t i = 0; i < COUNT; i++)
        variance[i] *= variance[i];
    struct {
        float *weight, *mean, *variance, *gradient;
        int64_t size;
        float rate, beta1, beta2, epsilon, decay, rescale;
    } adam = {weight, mean, variance, gradient, COUNT, 0.001f, 0.9f, 0.999f, 1e-8f, 1e-4f, 0.25f};
    struct {
        float *weight, *gradient;
        int64_t size;
        float rate, decay, rescale;
    } sgd = {weight, gradient, COUNT, 0.1f, 1e-4f, 0.25f};

    noisin_normals(normals, COUNT, 17, 4);
    print("normals", normals, COUNT, 7);
    cross_entropy(0);
    cross_entropy(1);
    noisin_adam(NULL, &adam);
    print("adam_mean", mean, COUNT, 7);
    print("adam_variance", variance, COUNT, 7);
    print("adam_weight", weight, COUNT, 7);
    noisin_sgd(NULL, &sgd);
    print("sgd_weight", weight, COUNT, 7);
    lstm();
    return 0;
}
