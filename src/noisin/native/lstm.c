/* What an LSTM's step does beside its matrix product, forward and backward, as an operator of MXNet's graphs.
 *
 * Loaded by lstm.py. It reads the projected input, the recurrent product (rows, 4 * units; gates in Gluon's order) and
 * the previous memory (rows, units). It writes the hidden state and the memory. MXNet (mxnet/lib_api.h) calls the
 * functions whose names begin with an underscore.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vector.h"

#define PARALLEL 4096 /* units in a batch from which several threads share them: a choice, not measured */

enum { INPUTS = 3, OUTPUTS = 2 };

/* One row of a batch. */
typedef void step(int64_t row, int64_t units, const float *const *in, float *const *out);

static inline float sigmoid(float x) {
    float e = exponential(-fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

static inline float hyperbolic_tangent(float x) {
    float e = exponential(-2.0f * fabsf(x)), z = x * x;
    float series = x + x * z * (-1.0f / 3 + z * (2.0f / 15 + z * (-17.0f / 315 + z * 62.0f / 2835)));
    return fabsf(x) < 0.25f ? series : copysignf((1.0f - e) / (1.0f + e), x); /* NaN stays */
}

/* The gates of unit i; the projected input and the recurrent product are `p` and `r`. */
#define GATES                                                                                                          \
    float update = sigmoid(p[i] + r[i]), forget = sigmoid(p[units + i] + r[units + i]);                                \
    float candidate = hyperbolic_tangent(p[2 * units + i] + r[2 * units + i]);                                         \
    float output = sigmoid(p[3 * units + i] + r[3 * units + i]);

FOR_EACH_PROCESSOR
static void forward(int64_t row, int64_t units, const float *const *in, float *const *out) {
    const float *p = in[0] + 4 * row * units, *r = in[1] + 4 * row * units, *memory = in[2] + row * units;
    float *hidden = out[0] + row * units, *next = out[1] + row * units;
#pragma omp simd
    for (int64_t i = 0; i < units; i++) {
        GATES
        next[i] = forget * memory[i] + update * candidate;
        hidden[i] = output * hyperbolic_tangent(next[i]);
    }
}

/* Reads the outputs' gradients, the inputs and the outputs; writes the inputs' gradients. */
FOR_EACH_PROCESSOR
static void backward(int64_t row, int64_t units, const float *const *in, float *const *out) {
    const float *hidden_gradient = in[0] + row * units, *next_gradient = in[1] + row * units;
    const float *p = in[2] + 4 * row * units, *r = in[3] + 4 * row * units;
    const float *memory = in[4] + row * units, *next = in[6] + row * units;
    float *gates_gradient = out[0] + 4 * row * units, *memory_gradient = out[2] + row * units;
#pragma omp simd
    for (int64_t i = 0; i < units; i++) {
        GATES
        float tangent = hyperbolic_tangent(next[i]);
        float gradient = next_gradient[i] + hidden_gradient[i] * output * (1.0f - tangent * tangent);
        gates_gradient[i] = gradient * candidate * update * (1.0f - update);
        gates_gradient[units + i] = gradient * memory[i] * forget * (1.0f - forget);
        gates_gradient[2 * units + i] = gradient * update * (1.0f - candidate * candidate);
        gates_gradient[3 * units + i] = hidden_gradient[i] * tangent * output * (1.0f - output);
        memory_gradient[i] = gradient * forget;
    }
    memcpy(out[1] + 4 * row * units, gates_gradient, sizeof(float) * 4 * (size_t)units);
}

int _opVersion(void) { return 11; }
int initialize(int version) { return version == 10901; }
int _opRegSize(void) { return 1; }
void _opCallFree(void *memory) { free(memory); }

/* MXNet gives what `attributes`, `types` and `shapes` point to back to the three functions below. */
void _opRegGet(int index, const char **name, int *is_subgraph, const char ***forward_devices, step ***forwards,
               int *forward_count, const char ***backward_devices, step ***backwards, int *backward_count,
               const char ***state_devices, void **states, int *state_count, const void **attributes,
               const void **types, const void **storage, const void **shapes, const void **mutated) {
    static const char *devices[] = {"cpu"};
    static step *steps[] = {forward, backward};
    *name = "noisin_lstm";
    *forward_devices = *backward_devices = devices;
    *forwards = steps;
    *backwards = steps + 1;
    *forward_count = *backward_count = 1;
    *attributes = *types = *shapes = devices; /* anything but NULL */
    *is_subgraph = *state_count = 0;
    *state_devices = NULL;
    *states = NULL;
    *storage = *mutated = NULL;
}

int _opCallParseAttrs(const void *unused, const char *const *keys, const char *const *values, int attributes,
                      int *inputs, int *outputs) {
    *inputs = INPUTS;
    *outputs = OUTPUTS;
    return 1;
}

/* All arrays are float32, which is 0. */
int _opCallInferType(const void *unused, const char *const *keys, const char *const *values, int attributes, int *in,
                     int inputs, int *out, int outputs) {
    for (int i = 0; i < inputs; i++)
        if (in[i] > 0)
            return 0;
    memset(in, 0, sizeof *in * (size_t)inputs);
    memset(out, 0, sizeof *out * (size_t)outputs);
    return 1;
}

/* `count` shapes (rows, columns), which MXNet frees. */
static void make_shapes(int count, unsigned rows, unsigned columns, unsigned ***shapes, int **ranks) {
    *shapes = malloc(sizeof **shapes * (size_t)count);
    *ranks = malloc(sizeof **ranks * (size_t)count);
    for (int i = 0; i < count; i++) {
        (*shapes)[i] = malloc(sizeof ***shapes * 2);
        (*shapes)[i][0] = rows;
        (*shapes)[i][1] = columns;
        (*ranks)[i] = 2;
    }
}

/* The projected input has all the sizes; others may not be known yet. MXNet compares those that are. */
int _opCallInferShape(const void *unused, const char *const *keys, const char *const *values, int attributes,
                      unsigned **in, int *in_ranks, int inputs, unsigned ***all_in, int **all_in_ranks,
                      unsigned ***out, int **out_ranks, int outputs) {
    if (in_ranks[0] != 2)
        return 0;
    make_shapes(inputs, in[0][0], in[0][1], all_in, all_in_ranks);
    make_shapes(outputs, in[0][0], in[0][1] / 4, out, out_ranks);
    (*all_in)[2][1] = in[0][1] / 4;
    return 1;
}

/* MXNet gives more arguments, which C's calling convention allows to ignore. */
int _opCallFCompute(step *run, const char *const *keys, const char *const *values, int attributes,
                    const int64_t **in_shapes, int *in_ranks, void **in, int *in_types, size_t *in_versions,
                    const char **in_devices, int *in_numbers, int inputs, const int64_t **out_shapes, int *out_ranks,
                    void **out, int *out_types, size_t *out_versions, const char **out_devices, int *out_numbers,
                    int outputs) {
    int64_t rows = out_shapes[outputs - 1][0], units = out_shapes[outputs - 1][1]; /* the memory's, or its gradient's */
#pragma omp parallel for if (rows * units >= PARALLEL)
    for (int64_t row = 0; row < rows; row++)
        run(row, units, (const float *const *)in, (float *const *)out);
    return 1;
}

/* MXNet looks these up: there are no partitions, passes or messages, and the operator has none of the rest. */
#define ABSENT(name)                                                                                                   \
    int name(void) { return 0; }
ABSENT(_opCallInferSType)
ABSENT(_opCallMutateInputs)
ABSENT(_opCallCreateOpState)
ABSENT(_opCallDestroyOpState)
ABSENT(_opCallFStatefulCompute)
ABSENT(_partRegSize)
ABSENT(_partRegGetCount)
ABSENT(_partRegGet)
ABSENT(_partCallSupportedOps)
ABSENT(_partCallCreateSelector)
ABSENT(_partCallSelect)
ABSENT(_partCallSelectInput)
ABSENT(_partCallSelectOutput)
ABSENT(_partCallFilter)
ABSENT(_partCallReset)
ABSENT(_partCallReviewSubgraph)
ABSENT(_passRegSize)
ABSENT(_passRegGet)
ABSENT(_passCallGraphPass)
ABSENT(_msgSize)
ABSENT(_msgGet)
