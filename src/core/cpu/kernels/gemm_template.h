/* The body of gemm.c for one element type: T, its vector V of VL lanes, V_LOAD, V_STORE, V_STREAM, V_SET, V_FMA, and GEMM(name)
 * for the names. */

/* C[m x vectors*VL] (+)= A[m][k] B[k][vectors*VL]. The accumulators are the register file: m rows of `vectors` vectors.
 * Element (i, p) of A is a[i*stride + p] where `rows` (k steps side by side), else a[i + p*stride]. Of rows every third has a
 * pointer, and the two after it are reached by the stride, so that addresses fit the registers too.
 * B is packed, or, where `packs`, the steps of k lie b_step apart and are packed to `packed` on the way: what would be a pass of
 * waiting for memory hides behind the sums. */
WEFTI_INLINE void GEMM(tile)(int m, int vectors, bool rows, bool packs, int64_t k, const T *a, int64_t stride, const T *b,
                             int64_t b_step, T *packed, T *c, int64_t ldc, wefti_gemm_store how) {
    enum { POINTERS = (TILE_ROWS + 2) / 3, AHEAD = 16 };
    V           sum[TILE_ROWS][2];
    const char *row[POINTERS];
    int64_t     bytes = stride * (int64_t)sizeof(T);
    int         pointers = rows ? (m + 2) / 3 : 1;
#pragma GCC unroll 16
    for (int i = 0; i < POINTERS; i++) row[i] = (const char *)a + (i < pointers ? 3 * i * bytes : 0);
#pragma GCC unroll 16
    for (int i = 0; i < m; i++) sum[i][0] = sum[i][1] = (V){0};
#pragma GCC unroll 16
    for (int i = 0; i < m && how != GEMM_STREAM; i++) { /* by the end of the sums C is near */
        __builtin_prefetch(c + i * ldc, 1);
        __builtin_prefetch(c + i * ldc + vectors * VL - 1, 1);
    }
    __asm__("" : "+r"(c)); /* else the addresses stay in registers until then */
    for (int64_t p = 0; p < k; p++) {
        V b0 = V_LOAD(b), b1 = vectors == 2 ? V_LOAD(b + VL) : (V){0};
        if (packs) {
            __builtin_prefetch(b + AHEAD * b_step);
            __builtin_prefetch(b + AHEAD * b_step + vectors * VL - 1);
            V_STORE(packed, b0);
            if (vectors == 2) V_STORE(packed + VL, b1);
            packed += vectors * VL;
        }
#pragma GCC unroll 16
        for (int i = 0; i < m; i++) {
            const char *at = rows ? row[i / 3] + i % 3 * bytes : row[0] + i * (int)sizeof(T);
            V           x  = V_SET(*(const T *)(const void *)at);
            sum[i][0] = V_FMA(x, b0, sum[i][0]);
            if (vectors == 2) sum[i][1] = V_FMA(x, b1, sum[i][1]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < POINTERS; i++) {
            row[i] += i >= pointers ? 0 : rows ? (int64_t)sizeof(T) : bytes;
            if (i < pointers) __asm__("" : "+r"(row[i])); /* else the compiler keeps a pointer for every row, most of them in memory */
        }
        b += packs ? b_step : vectors * VL;
    }
    if (how == GEMM_STREAM) {
#pragma GCC unroll 16
        for (int i = 0; i < m; i++) {
            V_STREAM(c + i * ldc, sum[i][0]);
            if (vectors == 2) V_STREAM(c + i * ldc + VL, sum[i][1]);
        }
        return;
    }
    bool add = how == GEMM_ADD;
#pragma GCC unroll 16
    for (int i = 0; i < m; i++) {
        V_STORE(c + i * ldc, add ? V_LOAD(c + i * ldc) + sum[i][0] : sum[i][0]);
        if (vectors == 2) V_STORE(c + i * ldc + VL, add ? V_LOAD(c + i * ldc + VL) + sum[i][1] : sum[i][1]);
    }
}

typedef void GEMM(tile_function)(int64_t k, const T *a, int64_t stride, const T *b, T *c, int64_t ldc, wefti_gemm_store how);
typedef void GEMM(packing_function)(int64_t k, const T *a, int64_t stride, const T *b, int64_t b_step, T *packed, T *c, int64_t ldc,
                                    wefti_gemm_store how);
#define TILE(m, vectors, rows)                                                                                              \
    static void GEMM(tile_##m##_##vectors##_##rows)(int64_t k, const T *a, int64_t stride, const T *b, T *c, int64_t ldc,   \
                                                      wefti_gemm_store how) {                                                 \
        GEMM(tile)(m, vectors, rows, false, k, a, stride, b, 0, NULL, c, ldc, how);                                         \
    }
#define PACKING(m, rows)                                                                                                    \
    static void GEMM(packing_##m##_##rows)(int64_t k, const T *a, int64_t stride, const T *b, int64_t b_step, T *packed,    \
                                             T *c, int64_t ldc, wefti_gemm_store how) {                                       \
        GEMM(tile)(m, 2, rows, true, k, a, stride, b, b_step, packed, c, ldc, how);                                         \
    }
#define TILES(m) TILE(m, 1, 0) TILE(m, 1, 1) TILE(m, 2, 0) TILE(m, 2, 1) PACKING(m, 0) PACKING(m, 1)
#define TILE_ROW(m) {{GEMM(tile_##m##_1_0), GEMM(tile_##m##_1_1)}, {GEMM(tile_##m##_2_0), GEMM(tile_##m##_2_1)}}
#define PACKING_ROW(m) {GEMM(packing_##m##_0), GEMM(packing_##m##_1)}
#if TILE_ROWS > 6
#define FOR_HEIGHTS(ROW) \
    ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6), ROW(7), ROW(8), ROW(9), ROW(10), ROW(11), ROW(12), ROW(13), ROW(14)
TILES(7) TILES(8) TILES(9) TILES(10) TILES(11) TILES(12) TILES(13) TILES(14)
#else
#define FOR_HEIGHTS(ROW) ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)
#endif
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)
/* By m - 1, vectors - 1, rows. */
static GEMM(tile_function) *const GEMM(tiles)[TILE_ROWS][2][2] = {FOR_HEIGHTS(TILE_ROW)};
static GEMM(packing_function) *const GEMM(packing)[TILE_ROWS][2] = {FOR_HEIGHTS(PACKING_ROW)};
#undef TILE
#undef PACKING
#undef TILES
#undef TILE_ROW
#undef PACKING_ROW
#undef FOR_HEIGHTS

/* One tile of which only `n` columns exist: computed aside, then copied. */
static void GEMM(ragged)(GEMM(tile_function) *tile, int m, int vectors, int n, int64_t k, const T *a, int64_t stride, const T *b, T *c,
                         int64_t ldc, wefti_gemm_store how) {
    T whole[TILE_ROWS * 2 * VL] __attribute__((aligned(64)));
    tile(k, a, stride, b, whole, vectors * VL, GEMM_STORE);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            T value        = whole[i * vectors * VL + j];
            c[i * ldc + j] = how == GEMM_ADD ? c[i * ldc + j] + value : value;
        }
}

/* Rows of panel `index` of `panels` over `rows`: as even as can be. */
#define PANEL_BEGIN(rows, panels, index) ((rows) * (index) / (panels))

/* VL vectors of VL lanes, transposed in place: log2(VL) rounds of perfect shuffles. */
WEFTI_INLINE void GEMM(transpose)(V *x) {
    typedef INTEGER shuffle __attribute__((vector_size(VECTOR_BYTES)));
    shuffle low, high;
    for (int i = 0; i < VL; i++) {
        low[i]  = (i & 1) * VL + i / 2;
        high[i] = (i & 1) * VL + VL / 2 + i / 2;
    }
    V y[VL];
#pragma GCC unroll 4
    for (int round = 1; round < VL; round *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < VL / 2; i++) {
            y[2 * i]     = __builtin_shuffle(x[i], x[i + VL / 2], low);
            y[2 * i + 1] = __builtin_shuffle(x[i], x[i + VL / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) x[i] = y[i];
    }
}

/* to[p*width + i] = from[i*stride + p] for i < count <= VL, p < k. Where `first` (the panel's first lanes), whole vectors are
 * stored, and what is too much is overwritten by the rows that follow; only the last rows must be stored exactly. */
static void GEMM(pack_across)(const T *from, int64_t stride, int64_t count, int64_t k, T *to, int64_t width, bool first) {
    int64_t p = 0;
    for (; p + VL <= k; p += VL) {
        V x[VL];
        for (int i = 0; i < VL; i++) x[i] = i < count ? V_LOAD(from + i * stride + p) : (V){0};
        GEMM(transpose)(x);
        if (count == VL || (first && p + 2 * VL <= k))
            for (int i = 0; i < VL; i++) V_STORE(to + (p + i) * width, x[i]);
        else
            for (int i = 0; i < VL; i++) memcpy(to + (p + i) * width, &x[i], (size_t)count * sizeof(T));
    }
    for (; p < k; p++)
        for (int64_t i = 0; i < count; i++) to[p * width + i] = from[i * stride + p];
}

/* k runs of `count` elements, `step` apart, one behind the other. A copy of constant size is a few vectors, any other a call. */
#define COPY_RUNS(n) \
    case n: \
        for (int64_t p = 0; p < k; p++) memcpy(to + p * width, from + p * step, n * sizeof(T)); \
        return;
static void GEMM(pack_runs)(const T *from, int64_t step, int64_t count, int64_t k, T *to, int64_t width) {
    switch (count) {
        COPY_RUNS(1) COPY_RUNS(2) COPY_RUNS(3) COPY_RUNS(4) COPY_RUNS(5) COPY_RUNS(6) COPY_RUNS(7) COPY_RUNS(8)
        COPY_RUNS(9) COPY_RUNS(10) COPY_RUNS(11) COPY_RUNS(12) COPY_RUNS(13) COPY_RUNS(14) COPY_RUNS(16) COPY_RUNS(32)
    default:
        for (int64_t p = 0; p < k; p++) memcpy(to + p * width, from + p * step, (size_t)count * sizeof(T));
    }
}
#undef COPY_RUNS

/* One panel: `count` indices, each `along` apart, over k steps of `step`; `width` elements a step in the panel. */
static void GEMM(pack_panel)(const T *from, int64_t along, int64_t step, int64_t count, int64_t k, T *to, int64_t width) {
    if (step == 1 && k >= VL) {
        for (int64_t i = 0; i < count; i += VL)
            GEMM(pack_across)(from + i * along, along, count - i < VL ? count - i : VL, k, to + i, width, i == 0);
    } else if (along == 1) {
        GEMM(pack_runs)(from, step, count, k, to, width);
    } else {
        for (int64_t p = 0; p < k; p++)
            for (int64_t i = 0; i < count; i++) to[p * width + i] = from[i * along + p * step];
    }
}

/* Steps of k that all panels take together where their elements lie side by side: reading goes along memory then. Rows are too short
 * and too far apart for the machine to see what comes next, so what is read two rounds later is asked for. */
enum { GEMM(STEPS) = 8 };

static void GEMM(ask_for)(const T *from, int64_t k_stride, int64_t count, int64_t left) {
    for (int64_t p = 2 * GEMM(STEPS); p < 3 * GEMM(STEPS) && p < left; p++)
        for (int64_t i = 0; i < count; i += 64 / (int64_t)sizeof(T)) __builtin_prefetch(from + p * k_stride + i);
}

static void GEMM(pack_a)(const void *operand, int64_t row_stride, int64_t k_stride, int64_t rows, int64_t k, int64_t begin,
                         int64_t end, void *packed) {
    int64_t  panels = (rows + TILE_ROWS - 1) / TILE_ROWS, steps = row_stride == 1 && k_stride != 1 ? GEMM(STEPS) : k;
    const T *a      = operand;
    for (int64_t p = 0, n; p < k; p += n) {
        n = k - p < steps ? k - p : steps;
        if (steps < k) {
            int64_t first = PANEL_BEGIN(rows, panels, begin);
            GEMM(ask_for)(a + first + p * k_stride, k_stride, PANEL_BEGIN(rows, panels, end) - first, k - p);
        }
        for (int64_t index = begin; index < end; index++) {
            int64_t row = PANEL_BEGIN(rows, panels, index), m = PANEL_BEGIN(rows, panels, index + 1) - row;
            GEMM(pack_panel)(a + row * row_stride + p * k_stride, row_stride, k_stride, m, n, (T *)packed + row * k + p * m, m);
        }
    }
}

static void GEMM(pack_b)(const void *operand, int64_t column_stride, int64_t k_stride, int64_t columns, int64_t k,
                         int64_t begin, int64_t end, void *packed) {
    enum { WIDTH = 2 * VL };
    const T *b     = operand;
    int64_t  steps = column_stride == 1 && k_stride != 1 ? GEMM(STEPS) : k;
    for (int64_t p = 0, n_steps; p < k; p += n_steps) {
        n_steps = k - p < steps ? k - p : steps;
        if (steps < k)
            GEMM(ask_for)(b + begin * WIDTH + p * k_stride, k_stride, (columns < end * WIDTH ? columns : end * WIDTH) - begin * WIDTH, k - p);
        for (int64_t column = begin * WIDTH; column < end * WIDTH && column < columns; column += WIDTH) {
            int64_t n = columns - column < WIDTH ? columns - column : WIDTH, width = n > VL ? WIDTH : VL;
            T      *panel = (T *)packed + column * k + p * width;
            GEMM(pack_panel)(b + column * column_stride + p * k_stride, column_stride, k_stride, n, n_steps, panel, width);
            for (int64_t q = 0; n < width && q < n_steps; q++) /* defined, and no denormals to slow the products down */
                memset(panel + q * width + n, 0, (size_t)(width - n) * sizeof(T));
        }
    }
}

/* Panel by panel of A, which is laid out as `layout` says. Where b_step, B lies `from` there, that far from step to step of k, and
 * whole panels are packed by the first tiles that read them; the last one, if it is narrower, was packed before. */
typedef enum GEMM(layout) { GEMM(COLUMNS), GEMM(ROWS), GEMM(PACKED) } GEMM(layout);
WEFTI_INLINE void GEMM(multiply_any)(GEMM(layout) layout, int64_t rows, int64_t columns, int64_t k, const T *a, int64_t stride,
                                     const T *from, int64_t b_step, T *b, T *c, int64_t ldc, wefti_gemm_store how) {
    enum { WIDTH = 2 * VL };
    int64_t a_panels = (rows + TILE_ROWS - 1) / TILE_ROWS, b_panels = (columns + WIDTH - 1) / WIDTH;
    /* The smaller operand is walked inside, where it stays in the nearer cache. */
    bool    a_outside = rows > columns;
    int64_t outer = a_outside ? a_panels : b_panels, inner = a_outside ? b_panels : a_panels;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            int64_t  ia = a_outside ? o : i, ib = a_outside ? i : o;
            int64_t  row = PANEL_BEGIN(rows, a_panels, ia), m = PANEL_BEGIN(rows, a_panels, ia + 1) - row;
            int64_t  n       = columns - ib * WIDTH < WIDTH ? columns - ib * WIDTH : WIDTH;
            int64_t  step    = layout == GEMM(PACKED) ? m : stride;
            int      vectors = n > VL ? 2 : 1;
            const T *pa = a + (layout == GEMM(PACKED) ? row * k : layout == GEMM(ROWS) ? row * stride : row);
            T       *pb = b + ib * WIDTH * k, *pc = c + row * ldc + ib * WIDTH;
            GEMM(tile_function) *tile = GEMM(tiles)[m - 1][vectors - 1][layout == GEMM(ROWS)];
            if (b_step && ia == 0 && n == WIDTH)
                GEMM(packing)[m - 1][layout == GEMM(ROWS)](k, pa, step, from + ib * WIDTH, b_step, pb, pc, ldc, how);
            else if (n == vectors * VL) tile(k, pa, step, pb, pc, ldc, how);
            else GEMM(ragged)(tile, (int)m, vectors, (int)n, k, pa, step, pb, pc, ldc, how);
        }
}

static void GEMM(multiply)(int64_t rows, int64_t columns, int64_t k, const void *packed_a, const void *packed_b, void *c, int64_t ldc,
                           wefti_gemm_store how) {
    GEMM(multiply_any)(GEMM(PACKED), rows, columns, k, packed_a, 0, NULL, 0, (T *)(uintptr_t)packed_b, c, ldc, how);
}
static void GEMM(multiply_rows)(int64_t rows, int64_t columns, int64_t k, const void *a, int64_t row_stride, const void *packed_b,
                                void *c, int64_t ldc, wefti_gemm_store how) {
    GEMM(multiply_any)(GEMM(ROWS), rows, columns, k, a, row_stride, NULL, 0, (T *)(uintptr_t)packed_b, c, ldc, how);
}
static void GEMM(multiply_columns)(int64_t rows, int64_t columns, int64_t k, const void *a, int64_t k_stride, const void *packed_b,
                                   void *c, int64_t ldc, wefti_gemm_store how) {
    GEMM(multiply_any)(GEMM(COLUMNS), rows, columns, k, a, k_stride, NULL, 0, (T *)(uintptr_t)packed_b, c, ldc, how);
}
static void GEMM(multiply_packing)(int64_t rows, int64_t columns, int64_t k, const void *a, int64_t row_stride, const void *b,
                                   int64_t k_stride, void *packed_b, void *c, int64_t ldc, wefti_gemm_store how) {
    enum { WIDTH = 2 * VL };
    if (columns % WIDTH) GEMM(pack_b)(b, 1, k_stride, columns, k, columns / WIDTH, columns / WIDTH + 1, packed_b);
    if (row_stride) GEMM(multiply_any)(GEMM(ROWS), rows, columns, k, a, row_stride, b, k_stride, packed_b, c, ldc, how);
    else GEMM(multiply_any)(GEMM(PACKED), rows, columns, k, a, 0, b, k_stride, packed_b, c, ldc, how);
}

const wefti_gemm GEMM(functions) = {
    .element_bytes = sizeof(T),
    .width         = 2 * VL,
    .multiply      = GEMM(multiply),
    .multiply_rows = GEMM(multiply_rows),
    .multiply_columns = GEMM(multiply_columns),
    .multiply_packing = GEMM(multiply_packing),
    .pack_a        = GEMM(pack_a),
    .pack_b        = GEMM(pack_b),
};

#undef PANEL_BEGIN
