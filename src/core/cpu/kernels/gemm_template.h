/* The body of gemm.c for one element type: T, its vector V of VL lanes, V_LOAD, V_STORE, V_SET, V_FMA, and GEMM(name)
 * for the names. */

/* C[m x NV*VL] (+)= A[k][m] B[k][NV*VL]. The accumulators are the register file: m rows of NV vectors. */
WEFTI_INLINE void GEMM(tile)(int m, int vectors, int64_t k, const T *a, const T *b, T *c, int64_t ldc, bool add) {
    V sum[TILE_ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < m; i++) sum[i][0] = sum[i][1] = (V){0};
    for (int64_t p = 0; p < k; p++) {
        V b0 = V_LOAD(b), b1 = vectors == 2 ? V_LOAD(b + VL) : (V){0};
#pragma GCC unroll 16
        for (int i = 0; i < m; i++) {
            V x       = V_SET(a[i]);
            sum[i][0] = V_FMA(x, b0, sum[i][0]);
            if (vectors == 2) sum[i][1] = V_FMA(x, b1, sum[i][1]);
        }
        a += m;
        b += vectors * VL;
    }
#pragma GCC unroll 16
    for (int i = 0; i < m; i++) {
        V_STORE(c + i * ldc, add ? V_LOAD(c + i * ldc) + sum[i][0] : sum[i][0]);
        if (vectors == 2) V_STORE(c + i * ldc + VL, add ? V_LOAD(c + i * ldc + VL) + sum[i][1] : sum[i][1]);
    }
}

typedef void GEMM(tile_function)(int64_t k, const T *a, const T *b, T *c, int64_t ldc, bool add);
#define TILE(m)                                                                                              \
    static void GEMM(tile_##m##_1)(int64_t k, const T *a, const T *b, T *c, int64_t ldc, bool add) {         \
        GEMM(tile)(m, 1, k, a, b, c, ldc, add);                                                              \
    }                                                                                                        \
    static void GEMM(tile_##m##_2)(int64_t k, const T *a, const T *b, T *c, int64_t ldc, bool add) {         \
        GEMM(tile)(m, 2, k, a, b, c, ldc, add);                                                              \
    }
#define TILE_ROW(m) {GEMM(tile_##m##_1), GEMM(tile_##m##_2)}
TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#if TILE_ROWS > 6
TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)
#endif
static GEMM(tile_function) *const GEMM(tiles)[TILE_ROWS][2] = {
    TILE_ROW(1), TILE_ROW(2), TILE_ROW(3), TILE_ROW(4), TILE_ROW(5), TILE_ROW(6),
#if TILE_ROWS > 6
    TILE_ROW(7), TILE_ROW(8), TILE_ROW(9), TILE_ROW(10), TILE_ROW(11), TILE_ROW(12), TILE_ROW(13), TILE_ROW(14),
#endif
};
#undef TILE
#undef TILE_ROW

/* One tile of which only `n` columns exist: computed aside, then copied. */
static void GEMM(ragged)(int m, int vectors, int n, int64_t k, const T *a, const T *b, T *c, int64_t ldc, bool add) {
    T whole[TILE_ROWS * 2 * VL] __attribute__((aligned(64)));
    GEMM(tiles)[m - 1][vectors - 1](k, a, b, whole, vectors * VL, false);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            T value        = whole[i * vectors * VL + j];
            c[i * ldc + j] = add ? c[i * ldc + j] + value : value;
        }
}

/* Rows of panel `index` of `panels` over `rows`: as even as can be. */
#define PANEL_BEGIN(rows, panels, index) ((rows) * (index) / (panels))

static void GEMM(multiply)(int64_t rows, int64_t columns, int64_t k, const void *packed_a, const void *packed_b,
                           void *result, int64_t ldc, bool add) {
    enum { WIDTH = 2 * VL };
    const T *a = packed_a, *b = packed_b;
    T       *c        = result;
    int64_t a_panels = (rows + TILE_ROWS - 1) / TILE_ROWS, b_panels = (columns + WIDTH - 1) / WIDTH;
    /* The smaller operand is walked inside, where it stays in the nearer cache. */
    bool    a_outside = rows > columns;
    int64_t outer = a_outside ? a_panels : b_panels, inner = a_outside ? b_panels : a_panels;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            int64_t  ia = a_outside ? o : i, ib = a_outside ? i : o;
            int64_t  row = PANEL_BEGIN(rows, a_panels, ia), m = PANEL_BEGIN(rows, a_panels, ia + 1) - row;
            int64_t  n       = columns - ib * WIDTH < WIDTH ? columns - ib * WIDTH : WIDTH;
            int      vectors = n > VL ? 2 : 1;
            const T *pa = a + row * k, *pb = b + ib * WIDTH * k;
            T       *pc = c + row * ldc + ib * WIDTH;
            if (n == vectors * VL)
                GEMM(tiles)[m - 1][vectors - 1](k, pa, pb, pc, ldc, add);
            else
                GEMM(ragged)((int)m, vectors, (int)n, k, pa, pb, pc, ldc, add);
        }
}

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

/* One panel: `count` indices, each `along` apart, over k steps of `step`; `width` elements a step in the panel. */
static void GEMM(pack_panel)(const T *from, int64_t along, int64_t step, int64_t count, int64_t k, T *to, int64_t width) {
    if (step == 1 && k >= VL) {
        for (int64_t i = 0; i < count; i += VL)
            GEMM(pack_across)(from + i * along, along, count - i < VL ? count - i : VL, k, to + i, width, i == 0);
    } else if (along == 1) {
        for (int64_t p = 0; p < k; p++) memcpy(to + p * width, from + p * step, (size_t)count * sizeof(T));
    } else {
        for (int64_t p = 0; p < k; p++)
            for (int64_t i = 0; i < count; i++) to[p * width + i] = from[i * along + p * step];
    }
}

static void GEMM(pack_a)(const void *operand, int64_t row_stride, int64_t k_stride, int64_t rows, int64_t k, int64_t begin,
                         int64_t end, void *packed) {
    int64_t  panels = (rows + TILE_ROWS - 1) / TILE_ROWS;
    const T *a      = operand;
    for (int64_t index = begin; index < end; index++) {
        int64_t row = PANEL_BEGIN(rows, panels, index), m = PANEL_BEGIN(rows, panels, index + 1) - row;
        GEMM(pack_panel)(a + row * row_stride, row_stride, k_stride, m, k, (T *)packed + row * k, m);
    }
}

static void GEMM(pack_b)(const void *operand, int64_t column_stride, int64_t k_stride, int64_t columns, int64_t k,
                         int64_t begin, int64_t end, void *packed) {
    enum { WIDTH = 2 * VL };
    const T *b = operand;
    for (int64_t column = begin * WIDTH; column < end * WIDTH && column < columns; column += WIDTH) {
        int64_t n = columns - column < WIDTH ? columns - column : WIDTH, width = n > VL ? WIDTH : VL;
        T      *panel = (T *)packed + column * k;
        GEMM(pack_panel)(b + column * column_stride, column_stride, k_stride, n, k, panel, width);
        if (n < width) /* defined, and no denormals to slow the products down */
            for (int64_t p = 0; p < k; p++) memset(panel + p * width + n, 0, (size_t)(width - n) * sizeof(T));
    }
}

const wefti_gemm GEMM(functions) = {
    .element_bytes = sizeof(T),
    .width         = 2 * VL,
    .multiply      = GEMM(multiply),
    .pack_a        = GEMM(pack_a),
    .pack_b        = GEMM(pack_b),
};

#undef PANEL_BEGIN
