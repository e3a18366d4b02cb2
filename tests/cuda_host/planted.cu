/* Kernels of the shim's own test: the usual ways in which threads work together, each with a fault that can be switched on. */
#include "cuda/kernel.cuh"

#include <stdlib.h>

#include "cuda_host/planted.h"

enum { THREADS = 256, BLOCKS = 8, N = THREADS * BLOCKS };

/* Launches kernel(in, out), with in[i] = i + 1, and gives `out` back; empty where the launch failed. */
struct result {
    int  out[N];
    bool ran;
};
template <typename... Parameters, typename... Rest>
static result run(void (*kernel)(Parameters...), unsigned threads, size_t shared_bytes, Rest... rest) {
    static result r;
    int *in = nullptr, *out = nullptr, host[N];
    for (int i = 0; i < N; i++) host[i] = i + 1;
    const void *function = wefti_shim_know_kernel("planted", kernel);
    r.ran = cudaMalloc(reinterpret_cast<void **>(&in), sizeof host) == cudaSuccess &&
            cudaMalloc(reinterpret_cast<void **>(&out), sizeof host) == cudaSuccess &&
            cudaMemcpy(in, host, sizeof host, cudaMemcpyHostToDevice) == cudaSuccess;
    auto launch = [&](Parameters... given) {
        void *pointers[] = {static_cast<void *>(&given)...};
        return cudaLaunchKernel(function, dim3(BLOCKS), dim3(threads), pointers, shared_bytes, nullptr);
    };
    r.ran = r.ran && launch(in, out, rest...) == cudaSuccess && cudaMemcpy(r.out, out, sizeof host, cudaMemcpyDeviceToHost) == cudaSuccess;
    cudaFree(in);
    cudaFree(out);
    return r;
}

/* --- races --- */

static __device__ void barrier_unless(bool broken) {
    if (!broken) __syncthreads();
}

static __global__ void turn_kernel(const int *in, int *out, bool broken) {
    WEFTI_SHARED(int, tile);
    int first = (int)(blockIdx.x * THREADS), i = (int)threadIdx.x;
    tile[i] = in[first + i];
    barrier_unless(broken);
    out[first + i] = tile[THREADS - 1 - i];
}
static bool turn(bool broken) {
    result r = run(turn_kernel, THREADS, THREADS * sizeof(int), broken);
    for (int i = 0; i < N && r.ran; i++) r.ran = r.out[i] == i / THREADS * THREADS + THREADS - i % THREADS;
    return r.ran;
}

/* The next round writes what the last one may still be reading. */
static __global__ void rounds_kernel(const int *in, int *out, bool broken) {
    __shared__ int tile[THREADS];
    int            first = (int)(blockIdx.x * THREADS), i = (int)threadIdx.x, sum = 0;
    for (int round = 0; round < 4; round++) {
        tile[i] = in[first + i] * (round + 1);
        __syncthreads();
        sum += tile[(i + 128) % THREADS];
        barrier_unless(broken);
    }
    out[first + i] = sum;
}
static bool rounds(bool broken) {
    result r = run(rounds_kernel, THREADS, 0, broken);
    for (int i = 0; i < N && r.ran; i++) r.ran = r.out[i] == 10 * (i / THREADS * THREADS + (i + 128) % THREADS + 1);
    return r.ran;
}

static __global__ void tree_kernel(const int *in, int *out, bool broken) {
    __shared__ int tile[THREADS];
    int            first = (int)(blockIdx.x * THREADS), i = (int)threadIdx.x;
    tile[i] = in[first + i];
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (i < half) tile[i] += tile[i + half];
        barrier_unless(broken);
    }
    if (!broken || i == 0) out[first + i] = tile[0];
    if (broken) __syncthreads();
    if (broken) out[first + i] = tile[0];
}
static bool tree(bool broken) {
    result r = run(tree_kernel, THREADS, 0, broken);
    for (int i = 0; i < N && r.ran; i++) {
        int first = i / THREADS * THREADS;
        r.ran = r.out[i] == THREADS * (2 * first + THREADS + 1) / 2;
    }
    return r.ran;
}

/* The first warp adds up what every warp has left. */
static __global__ void warps_kernel(const int *in, int *out, bool broken) {
    __shared__ int sums[THREADS / 32];
    __shared__ int total;
    int            first = (int)(blockIdx.x * THREADS), i = (int)threadIdx.x, sum = in[first + i];
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_down_sync(0xffffffffu, sum, (unsigned)lanes);
    if (i % 32 == 0) sums[i / 32] = sum;
    barrier_unless(broken);
    if (i < 32) {
        sum = i < THREADS / 32 ? sums[i] : 0;
        sum = __reduce_add_sync(0xffffffffu, sum);
        if (i == 0) total = sum;
    }
    __syncthreads();
    out[first + i] = total;
}
static bool warps(bool broken) {
    result r = run(warps_kernel, THREADS, 0, broken);
    for (int i = 0; i < N && r.ran; i++) r.ran = r.out[i] == THREADS * (2 * (i / THREADS * THREADS) + THREADS + 1) / 2;
    return r.ran;
}

/* Lanes that rely on their warp going in step. */
static __global__ void lanes_kernel(const int *in, int *out, bool broken) {
    __shared__ int tile[THREADS];
    int            first = (int)(blockIdx.x * THREADS), i = (int)threadIdx.x;
    tile[i] = in[first + i];
    if (!broken) __syncwarp();
    out[first + i] = tile[i ^ 1];
}
static bool lanes(bool broken) {
    result r = run(lanes_kernel, THREADS, 0, broken);
    for (int i = 0; i < N && r.ran; i++) r.ran = r.out[i] == (i ^ 1) + 1;
    return r.ran;
}

/* A ring of slots: the producing warps may be one round ahead, not two. */
static __global__ void ring_kernel(const int *in, int *out, bool broken) {
    enum { HALF = THREADS / 2 };
    __shared__ int slots[2][HALF];
    int            first = (int)(blockIdx.x * THREADS), i = (int)threadIdx.x % HALF, sum = 0;
    bool           produces = threadIdx.x < HALF;
    for (int round = 0; round < 6; round++) {
        if (produces) slots[round % 2][i] = in[first + i] + round;
        if (!broken || round < 2) __syncthreads();
        else if (produces) __barrier_sync_count(1, HALF); /* waits for the wrong ones */
        else __barrier_sync_count(2, HALF);
        if (!produces) sum += slots[round % 2][HALF - 1 - i];
    }
    out[first + (int)threadIdx.x] = sum;
}
static bool ring(bool broken) {
    result r = run(ring_kernel, THREADS, 0, broken);
    for (int i = 0; i < N && r.ran; i++) {
        int at = i % THREADS;
        r.ran = r.out[i] == (at < THREADS / 2 ? 0 : 6 * (i / THREADS * THREADS + THREADS - at) + 15);
    }
    return r.ran;
}

extern "C" const planted planted_races[] = {{"a tile turned in shared memory", turn}, {"rounds over one tile", rounds}, {"a tree in shared memory", tree},
                                 {"sums of warps", warps}, {"lanes of a warp", lanes}, {"a ring between warps", ring}, {nullptr, nullptr}};

/* Threads add to one number without an atomic: there is one worker, so nothing is lost. */
static __global__ void add_kernel(const int *in, int *out, bool broken) {
    __shared__ int sum;
    int            first = (int)(blockIdx.x * THREADS), i = (int)threadIdx.x;
    if (i == 0) sum = 0;
    __syncthreads();
    if (broken) sum += in[first + i];
    else atomicAdd(&sum, in[first + i]);
    __syncthreads();
    out[first + i] = sum;
}
static bool add(bool broken) {
    result r = run(add_kernel, THREADS, 0, broken);
    for (int i = 0; i < N && r.ran; i++) r.ran = r.out[i] == THREADS * (2 * (i / THREADS * THREADS) + THREADS + 1) / 2;
    return r.ran;
}

/* Blocks add to what is theirs, or to what is another's too. */
static __global__ void overlap_kernel(const int *in, int *out, bool broken) {
    int at = (int)(blockIdx.x * THREADS + threadIdx.x);
    out[at] = in[at];
    if (broken && at + THREADS < N) out[at + THREADS] = in[at + THREADS];
}
static bool overlap(bool broken) {
    result r = run(overlap_kernel, THREADS, 0, broken);
    for (int i = 0; i < N && r.ran; i++) r.ran = r.out[i] == i + 1;
    return r.ran;
}

/* The last block adds up what all have left; without the counter, whichever comes last here. */
static __global__ void last_kernel(const int *in, int *out, bool broken) {
    __shared__ int is_last;
    int            at = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (at > 0) out[at] = in[at];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = broken ? blockIdx.x == 3 : atomicAdd(out, 1) == BLOCKS - 2 /* fresh memory is -1 */;
    __syncthreads();
    if (is_last && threadIdx.x == 1) out[1] = out[N - 1] == N || out[N - 1] == -1 ? 2 : 0;
}
static bool last(bool broken) {
    result r = run(last_kernel, THREADS, 0, broken);
    return r.ran;
}

/* Shared memory that is read before anybody has written it, and then not used. */
static __global__ void unwritten_kernel(const int *in, int *out, bool broken) {
    __shared__ int tile[THREADS + 1];
    int            first = (int)(blockIdx.x * THREADS), i = (int)threadIdx.x;
    tile[i] = in[first + i];
    __syncthreads();
    int next = broken || i < THREADS - 1 ? tile[i + 1] : 0;
    out[first + i] = next & -(int)(i < THREADS - 1);
}
static bool unwritten(bool broken) { return run(unwritten_kernel, THREADS, 0, broken).ran; }

extern "C" const planted hidden_races[] = {{"adding without an atomic", add}, {"blocks that overlap", overlap}, {"a last block that is not told", last},
                                {"shared memory that nobody wrote", unwritten}, {nullptr, nullptr}};

/* --- failures --- */

static __global__ void divergent_kernel(const int *in, int *out, bool broken) {
    if (broken && threadIdx.x % 2) __syncthreads();
    else __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = in[0];
}
static bool divergent(bool broken) { return run(divergent_kernel, THREADS, 0, broken).ran; }

/* A warp waits at the barrier for lanes that wait for it in a shuffle. */
static __global__ void locked_kernel(const int *in, int *out, bool broken) {
    int x = in[0];
    if (broken && threadIdx.x == 5) __syncthreads();
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    if (!broken || threadIdx.x != 5) __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = x;
}
static bool locked(bool broken) { return run(locked_kernel, THREADS, 0, broken).ran; }

static __global__ void stranger_kernel(const int *in, int *out, bool broken) {
    int x = in[0];
    if (threadIdx.x % 32 < 16) x = __shfl_sync(broken ? 0xfff0u : 0xffffu, x, 4);
    out[blockIdx.x * THREADS + threadIdx.x] = x;
}
static bool stranger(bool broken) { return run(stranger_kernel, THREADS, 0, broken).ran; }

static __global__ void masks_kernel(const int *in, int *out, bool broken) {
    int      x = in[0];
    unsigned half = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
    x += __shfl_xor_sync(broken && threadIdx.x % 32 < 16 ? 0xffffffffu : half, x, 1);
    __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = x;
}
static bool masks(bool broken) { return run(masks_kernel, THREADS, 0, broken).ran; }

/* Waits for a flag that a later thread of the same block sets, or for one that nobody sets. */
static __global__ void spin_kernel(const int *in, int *out, bool broken) {
    __shared__ int flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (threadIdx.x == 200 && !broken) atomicExch(&flag, 1);
    if (threadIdx.x == 3)
        while (atomicAdd(&flag, 0) == 0) {}
    out[blockIdx.x * THREADS + threadIdx.x] = in[0];
}
static bool spin(bool broken) { return run(spin_kernel, THREADS, 0, broken).ran; }

#ifndef __SANITIZE_ADDRESS__ /* which would end the program, and says more */
static __global__ void behind_kernel(const int *in, int *out, bool broken) {
    WEFTI_SHARED(int, tile);
    tile[threadIdx.x + (broken ? 1 : 0)] = in[0];
    __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = tile[threadIdx.x ? threadIdx.x : 1];
}
static bool behind(bool broken) { return run(behind_kernel, THREADS, THREADS * sizeof(int), broken).ran; }
#endif

static __global__ void trap_kernel(const int *in, int *out, bool broken) {
    if (broken && threadIdx.x == 77) __trap();
    out[blockIdx.x * THREADS + threadIdx.x] = in[0];
}
static bool trap(bool broken) { return run(trap_kernel, THREADS, 0, broken).ran; }

/* Limits of a launch. */
static bool threads_of_a_block(bool broken) { return run(trap_kernel, broken ? 1025 : THREADS, 0, false).ran; }
static bool shared_of_a_block(bool broken) { return run(trap_kernel, THREADS, broken ? (48 << 10) + 1 : 48 << 10, false).ran; }
/* A pointer to the host's memory. */
static __global__ void reach_kernel(const int *in, int *out, const int *other) { out[blockIdx.x * THREADS + threadIdx.x] = in[0] + (other != nullptr); }
static bool reach(bool broken) {
    static int host;
    return run(reach_kernel, THREADS, 0, broken ? &host : nullptr).ran;
}

extern "C" const planted planted_failures[] = {{"barriers at two places", divergent}, {"a barrier against a shuffle", locked}, {"a lane outside its own mask", stranger},
                                    {"masks that differ", masks}, {"spinning", spin}, {"a trap", trap}, {"too many threads", threads_of_a_block},
                                    {"too much shared memory", shared_of_a_block}, {"a host pointer", reach},
#ifndef __SANITIZE_ADDRESS__
                                    {"writing behind shared memory", behind},
#endif
                                    {nullptr, nullptr}};

/* --- meanings --- */

/* out[i] = one bit for each statement that holds. */
static __global__ void lanes_mean_kernel(const int *in, int *out) {
    const unsigned all = 0xffffffffu;
    int            lane = (int)threadIdx.x % 32, good = 0, agree = -1;
    (void)in;
    good |= (__shfl_sync(all, lane, 5) == 5) << 0;
    good |= (__shfl_sync(all, lane, 35) == 3) << 1; /* modulo the width */
    good |= (__shfl_sync(all, lane, 9, 8) == lane / 8 * 8 + 1) << 2;
    good |= (__shfl_up_sync(all, lane, 3) == (lane < 3 ? lane : lane - 3)) << 3;
    good |= (__shfl_up_sync(all, lane, 3, 16) == (lane % 16 < 3 ? lane : lane - 3)) << 4;
    good |= (__shfl_down_sync(all, lane, 30) == (lane < 2 ? lane + 30 : lane)) << 5;
    good |= (__shfl_down_sync(all, lane, 2, 4) == (lane % 4 < 2 ? lane + 2 : lane)) << 6;
    good |= (__shfl_xor_sync(all, lane, 16) == (lane ^ 16)) << 7;
    good |= (__shfl_xor_sync(all, lane, 9, 8) == (lane / 8 % 2 ? (lane ^ 9) : lane)) << 8;
    good |= (__shfl_xor_sync(all, lane * 0.5, 1) == (lane ^ 1) * 0.5) << 9;
    good |= (__half2float(__shfl_xor_sync(all, __float2half((float)lane), 1)) == (float)(lane ^ 1)) << 10;
    good |= (__ballot_sync(all, lane % 3 == 0) == 0x49249249u) << 11;
    good |= (__any_sync(all, lane == 31) && !__any_sync(all, lane == 32)) << 12;
    good |= (__all_sync(all, lane < 32) && !__all_sync(all, lane < 31)) << 13;
    good |= (__match_any_sync(all, lane / 4) == 15u << lane / 4 * 4) << 14;
    good |= (__match_all_sync(all, 7, &agree) == all && agree == 1) << 15;
    good |= (__match_all_sync(all, lane, &agree) == 0 && agree == 0) << 16;
    good |= (__reduce_add_sync(all, lane) == 496) << 17;
    good |= (__reduce_min_sync(all, -lane) == -31 && __reduce_max_sync(all, -lane) == 0) << 18;
    good |= (__reduce_min_sync(all, (unsigned)-lane) == 0 && __reduce_max_sync(all, (unsigned)-lane) == (unsigned)-1) << 19;
    good |= (__reduce_or_sync(all, 1u << lane) == all && __reduce_and_sync(all, ~(1u << lane)) == 0 && __reduce_xor_sync(all, 1u << lane) == all) << 20;
    good |= (__syncthreads_count(threadIdx.x < 100) == 100) << 21;
    good |= (__syncthreads_or(threadIdx.x == 100) == 1 && __syncthreads_and(threadIdx.x == 100) == 0 && __syncthreads_and(1) == 1) << 22;
    if (lane % 2 == 0) good |= (__shfl_sync(0x55555555u, lane, 4) == 4) << 23; /* half of the warp */
    else good |= 1 << 23;
    out[blockIdx.x * blockDim.x + threadIdx.x] = good;
}
static bool lanes_mean(bool) {
    result r = run(lanes_mean_kernel, THREADS, 0);
    for (int i = 0; i < N && r.ran; i++)
        if (r.out[i] != (1 << 24) - 1) fprintf(stderr, "thread %d: statements %06x hold\n", i, (unsigned)r.out[i]), r.ran = false;
    return r.ran;
}

static __global__ void atomics_mean_kernel(const int *in, int *out) {
    __shared__ int                sum, least, most, bits, wraps, claimed;
    __shared__ unsigned long long wide;
    __shared__ float              f;
    (void)in;
    if (threadIdx.x == 0) sum = 0, least = 1000, most = -1000, bits = 0, wraps = 0, claimed = -1, wide = 0, f = 0;
    __syncthreads();
    int i = (int)threadIdx.x;
    atomicAdd(&sum, i);
    atomicMin(&least, i - 7);
    atomicMax(&most, i);
    atomicOr(&bits, 1 << i % 31);
    atomicInc(reinterpret_cast<unsigned *>(&wraps), 9u);
    atomicAdd(&wide, 1ull << 33);
    atomicAdd(&f, 0.5f);
    if (atomicCAS(&claimed, -1, i) == -1) atomicSub(&sum, 1);
    __syncthreads();
    int good = sum == THREADS * (THREADS - 1) / 2 - 1;
    good |= (least == -7) << 1 | (most == THREADS - 1) << 2 | (bits == 0x7fffffff) << 3 | (wraps == THREADS % 10) << 4;
    good |= (wide == (unsigned long long)THREADS << 33) << 5 | (f == THREADS * 0.5f) << 6 | (claimed >= 0) << 7;
    out[blockIdx.x * blockDim.x + threadIdx.x] = good;
}
static bool atomics_mean(bool) {
    result r = run(atomics_mean_kernel, THREADS, 0);
    for (int i = 0; i < N && r.ran; i++) r.ran = r.out[i] == 255;
    return r.ran;
}

/* Threads that leave early are not waited for. */
static __global__ void leave_kernel(const int *in, int *out) {
    out[blockIdx.x * THREADS + threadIdx.x] = in[0];
    if (threadIdx.x >= 100) return;
    __syncthreads();
    int count = __reduce_add_sync(0xffffffffu, 1);
    out[blockIdx.x * THREADS + threadIdx.x] = count;
}
static bool leave(bool) {
    result r = run(leave_kernel, THREADS, 0);
    for (int i = 0; i < N && r.ran; i++) r.ran = r.out[i] == (i % THREADS >= 100 ? 1 : i % THREADS < 96 ? 32 : 4);
    return r.ran;
}

static bool numbers_mean(bool) {
    float nan = __int_as_float(0x7fc00000);
    return __float_as_int(1.0f) == 0x3f800000 && __clz(1) == 31 && __clz(0) == 32 && __ffs(8) == 4 && __popc(255u) == 8 && __brev(1u) == 0x80000000u &&
           __umulhi(0x80000000u, 4u) == 2 && __byte_perm(0x33221100u, 0x77665544u, 0x7410u) == 0x77441100u && __funnelshift_l(0x80000000u, 1u, 1u) == 3u &&
           __fadd_rz(1.0f, 0x1p-24f) == 1.0f && __fadd_ru(1.0f, 0x1p-30f) == 1.0f + 0x1p-23f && __fdiv_rd(1.0f, 3.0f) < __fdiv_ru(1.0f, 3.0f) &&
           __float2int_rz(-1.9f) == -1 && __float2int_rn(2.5f) == 2 && __float2int_rz(1e20f) == 0x7fffffff && __float2int_rz(nan) == 0 &&
           __double2float_rz(1.0 + 0x1p-24) == 1.0f && max(nan, 1.0f) == 1.0f && min(3, 2) == 2 && max(-1, 2u) == 0xffffffffu && rsqrtf(4.0f) == 0.5f &&
           __half2float(__hfma(__float2half(2), __float2half(3), __float2half(1))) == 7 && __bfloat162float(hexp(__float2bfloat16(0))) == 1;
}

extern "C" const planted sound_kernels[] = {{"what lanes do together", lanes_mean}, {"atomics", atomics_mean}, {"leaving early", leave}, {"intrinsics", numbers_mean},
                                 {nullptr, nullptr}};

static __global__ void step_kernel(int *data, int n, int times, int plus) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) data[i] = data[i] * times + plus;
}
extern "C" cudaError_t planted_step(int *data, int n, int times, int plus, cudaStream_t stream) {
    const void *function = wefti_shim_know_kernel("step", step_kernel);
    void       *pointers[] = {&data, &n, &times, &plus};
    return cudaLaunchKernel(function, dim3((unsigned)(n + 63) / 64), dim3(64), pointers, 0, stream);
}
