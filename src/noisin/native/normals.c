/* Standard normal draws: Philox's random words, turned into normals by Box and Muller's method.
 *
 * Called by normals.py. Philox 4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") is a
 * function of a counter and a key, so that compilers turn the loop over counters into vector instructions.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "vector.h"

#define LANES 64 /* counters in a block; each gives four normals */

/* Random words for the counters (counter + lane, 0, 0), four for each lane. */
static inline void philox(uint64_t counter, uint32_t key0, uint32_t key1, uint32_t word[4][LANES]) {
    for (int lane = 0; lane < LANES; lane++) {
        word[0][lane] = (uint32_t)(counter + lane);
        word[1][lane] = (uint32_t)((counter + lane) >> 32);
        word[2][lane] = word[3][lane] = 0;
    }
    for (int round = 0; round < 10; round++) {
#pragma omp simd
        for (int lane = 0; lane < LANES; lane++) {
            uint64_t first = (uint64_t)0xD2511F53u * word[0][lane], second = (uint64_t)0xCD9E8D57u * word[2][lane];
            word[0][lane] = (uint32_t)(second >> 32) ^ word[1][lane] ^ key0;
            word[2][lane] = (uint32_t)(first >> 32) ^ word[3][lane] ^ key1;
            word[1][lane] = (uint32_t)second;
            word[3][lane] = (uint32_t)first;
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

/* log(x) for 0 < x < 1, to a relative error of 2e-7: x = 2^e (1 + f) with 1 + f near 1, and the series of log(1 + f). */
static inline float logarithm(float x) {
    int32_t e = (int32_t)(to_bits(x) - 0x3f3504f3u) >> 23; /* 1 + f is from sqrt(1/2) to sqrt(2) */
    float f = from_bits(to_bits(x) - ((uint32_t)e << 23)) - 1.0f;
    float s = f / (2.0f + f), z = s * s;
    return (float)e * 0.69314718f + s * (2.0f + z * (0.66666663f + z * (0.40000972f + z * (0.28498787f + z * 0.2427908f))));
}

/* Two independent normals of two random words: a radius of sqrt(-2 log u), u in (0, 1), and a direction.
 *
 * 23 bits of the first word are u's, as many as a float holds; no normal is further out than 5.8. The two highest bits of the second are
 * the quadrant, the rest an angle in it from -pi/4 to pi/4, where sine and cosine are short polynomials.
 */
static inline void box_muller(uint32_t first, uint32_t second, float *x, float *y) {
    float u = ((float)(int32_t)(first >> 9) + 0.5f) * 0x1p-23f;
    float radius = sqrtf(-2.0f * logarithm(u));
    uint32_t quadrant = second >> 30;
    float t = (float)(int32_t)(second << 2) * (0.78539816f * 0x1p-31f), z = t * t;
    float sine = t * (1.0f + z * (-0.16666655f + z * (8.3321609e-3f - z * 1.9515296e-4f)));
    float cosine = 1.0f + z * (-0.5f + z * (4.1666646e-2f + z * (-1.3887316e-3f + z * 2.4433157e-5f)));
    float along = quadrant & 1 ? sine : cosine, across = quadrant & 1 ? cosine : sine;
    *x = radius * from_bits(to_bits(along) ^ (quadrant & 2) << 30);
    *y = radius * from_bits(to_bits(across) ^ ((quadrant + 1) & 2) << 30);
}

/* Fill `normals` with `count` draws. In each block of 4 * LANES, counter n gives the draws n, n + LANES, ... */
FOR_EACH_PROCESSOR
void noisin_normals(float *restrict normals, int64_t count, uint32_t key0, uint32_t key1) {
    uint32_t word[4][LANES];
    float block[4][LANES];
    for (int64_t start = 0; start < count; start += 4 * LANES) {
        philox((uint64_t)start / 4, key0, key1, word);
#pragma omp simd
        for (int lane = 0; lane < LANES; lane++) {
            box_muller(word[0][lane], word[1][lane], &block[0][lane], &block[1][lane]);
            box_muller(word[2][lane], word[3][lane], &block[2][lane], &block[3][lane]);
        }
        int64_t left = count - start;
        memcpy(normals + start, block, sizeof(float) * (size_t)(left < 4 * LANES ? left : 4 * LANES));
    }
}
