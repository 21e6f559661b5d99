/* What the C files share so that compilers can turn their loops into vector instructions. */
#ifndef NOISIN_VECTOR_H
#define NOISIN_VECTOR_H

#include <stdint.h>
#include <string.h>

/* One compiled version for each generation of processors; the best is taken when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define FOR_EACH_PROCESSOR
#endif

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* exp(x) for x <= 0, to a relative error of 2e-7: 2^n times a polynomial, n the nearest whole number to x / log 2. */
static inline float exponential(float x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number, which is then in the low bits */
    float t = x * 1.44269504f;
    t = t < -126.0f ? -126.0f : t; /* NaN stays */
    float shifted = t + shift;
    float f = (t - (shifted - shift)) * 0.69314718f;
    float p = 1.0f / 720;
    p = p * f + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    return p * from_bits((to_bits(shifted) + 127) << 23);
}

#endif
