/* Matrix products by a packaged BLAS, on one thread: what Weft's own are measured against, and what a choice between
 * BLIS and OpenBLAS rests on. Linked once with each (see run.sh). One JSON object a line and shape.
 *
 * usage: blas_gemm NAME [SECONDS]
 *
 * C[m x n] = A[m x k] B[k x n], f32, row-major; "nt" with B transposed, "tn" with A transposed, as the forward pass and
 * the two gradients of a linear layer need them. Each shape is checked, warmed up, and timed in windows. */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { WINDOWS = 9 };

typedef struct shape {
    int         m, n, k;
    char        layout[3]; /* nn, nt, tn */
    const char *where;
} shape;

static const shape shapes[] = {
    {64, 512, 784, "nt", "mlp layer 1"},          {512, 784, 64, "tn", "mlp layer 1, weight gradient"},
    {64, 256, 512, "nt", "mlp layer 2"},          {64, 512, 256, "nn", "mlp layer 2, input gradient"},
    {64, 10, 256, "nt", "mlp head"},              {64, 196, 288, "nn", "cnn convolution 2, an image"},
    {64, 128, 3136, "nt", "cnn linear"},          {128, 3136, 64, "tn", "cnn linear, weight gradient"},
    {3072, 1152, 384, "nt", "gpt qkv"},           {3072, 1536, 384, "nt", "gpt up"},
    {1536, 384, 3072, "tn", "gpt up, weight gradient"}, {1024, 1024, 1024, "nn", "square"},
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void multiply(const shape *s, const float *a, const float *b, float *c) {
    int ta = s->layout[0] == 't', tb = s->layout[1] == 't';
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, s->m, s->n, s->k, 1, a,
                ta ? s->m : s->k, b, tb ? s->k : s->n, 0, c, s->n);
}

static int is_right(const shape *s, const float *a, const float *b, const float *c) {
    for (int probe = 0; probe < 100; ++probe) {
        int    i = probe * 7919 % s->m, j = probe * 104729 % s->n;
        double sum = 0;
        for (int p = 0; p < s->k; ++p)
            sum += (double)(s->layout[0] == 't' ? a[p * s->m + i] : a[i * s->k + p]) *
                   (double)(s->layout[1] == 't' ? b[j * s->k + p] : b[p * s->n + j]);
        if (fabs(sum - (double)c[i * s->n + j]) > 1e-3 * (1 + fabs(sum))) return 0;
    }
    return 1;
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "blas";
    double      seconds = argc > 2 ? atof(argv[2]) : 0.05, rates[WINDOWS];
    size_t      most = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
        size_t m = (size_t)shapes[i].m, n = (size_t)shapes[i].n, k = (size_t)shapes[i].k;
        if (m * k > most) most = m * k;
        if (n * k > most) most = n * k;
        if (m * n > most) most = m * n;
    }
    float *a = malloc(most * sizeof *a), *b = malloc(most * sizeof *b), *c = calloc(most, sizeof *c);
    if (!a || !b || !c) return 1;
    for (size_t i = 0; i < most; ++i) {
        a[i] = (float)(i * 37 % 101) / 101 - 0.5f;
        b[i] = (float)(i * 53 % 97) / 97 - 0.5f;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
        const shape *s = &shapes[i];
        multiply(s, a, b, c);
        if (!is_right(s, a, b, c)) {
            fprintf(stderr, "%s: %s is wrong\n", name, s->where);
            return 1;
        }
        for (int w = -1; w < WINDOWS; ++w) { /* the first one warms up */
            double start = now(), took = 0;
            long   times = 0;
            for (; took < seconds; took = now() - start, ++times) multiply(s, a, b, c);
            if (w >= 0) rates[w] = 2e-9 * s->m * s->n * s->k * (double)times / took;
        }
        qsort(rates, WINDOWS, sizeof *rates, compare);
        printf("{\"bench\": \"gemm\", \"case\": \"%d x %d x %d %s, %s\", \"library\": \"%s\", \"metric\": \"rate\", "
               "\"unit\": \"GFLOP/s\", \"median\": %.2f, \"low\": %.2f, \"high\": %.2f, \"runs\": %d}\n",
               s->m, s->n, s->k, s->layout, s->where, name, rates[WINDOWS / 2], rates[0], rates[WINDOWS - 1], WINDOWS);
    }
    free(a);
    free(b);
    free(c);
    return 0;
}
