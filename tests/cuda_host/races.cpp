/* Finds races between the threads of a launch.
 *
 * Kernels are compiled with -fsanitize=thread, but linked with the functions here in place of that sanitizer's library, which knows nothing of
 * fibers, warps and blocks. For every four bytes that a launch touches a cell remembers who wrote them last and two of those who read them
 * since. An access races with an earlier one of another thread where one of both writes, and nothing orders them:
 *   - within a block: barriers, followed by vector clocks of its warps; within a warp: a collective too; an atomic comes after all
 *     that its warp did and all that was handed over by earlier atomics of the block;
 *   - between blocks: atomics, of the earlier block after its access and of the later one before its own ("the last block adds up").
 * Atomics are taken to hand over everything, which can hide races, and never makes one up. Reads of shared memory that the block
 * has not written are reported as well. Finding does not depend on the order in which threads run, but for two accesses that are ordered by luck
 * through atomics.
 *
 * Costs: six times the time of a kernel's accesses, and six bytes for each that it touches. */
#include "cuda_host/races.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <unordered_map>
#include <vector>

#include "cuda_host/shim.h"

extern "C" char __data_start, _end; /* static shared memory lies between them */

namespace weft_host {

running_thread races_running = {-1, 0, nullptr, nullptr};

namespace {

enum { THREADS = 1024, WARPS = THREADS / 32, PAGE_CELLS = 1024, CELL_BYTES = 4, NEAR = 256, ENOUGH = 200000 };

/* A stretch of one thread's run without anything that orders it. Number 0 is nobody. */
struct stretch {
    uint32_t block, epoch, warp_epoch, clock; /* epoch: its warp's own clock */
    int32_t  thread;
};
struct cell {
    uint32_t writer, writer_at, readers[2], reader_at;
    uint32_t block; /* of shared memory: whose it is */
    uint8_t  written, read[2], filled; /* which of the bytes; filled: by this block at all */
};
struct page {
    uint32_t launch;
    cell     cells[PAGE_CELLS];
};
struct block_clock {
    uint32_t handed_over; /* the clock of its last atomic */
};

std::vector<stretch>     stretches;
std::vector<block_clock> blocks;
uint32_t                 seen[WARPS + 1][WARPS]; /* [w][v]: how far warp w has seen warp v; the last row is what atomics handed over */
uint32_t                 launch, block, warp_epochs[WARPS], current_stretch[THREADS], clock_now;
const unsigned char     *shared_begin, *shared_end;
const void              *program; /* where it is loaded */
int64_t                  looked_at;
std::unordered_map<uintptr_t, page *> pages;
struct {
    uintptr_t number;
    page     *at;
} near_pages[NEAR];

cell *cell_of(uintptr_t at) {
    uintptr_t number = at / (PAGE_CELLS * CELL_BYTES);
    auto     &slot = near_pages[number % NEAR];
    if (slot.number != number || !slot.at) {
        page *&found = pages[number];
        if (!found) found = static_cast<page *>(calloc(1, sizeof *found));
        slot = {number, found};
    }
    if (slot.at->launch != launch) {
        memset(slot.at, 0, sizeof *slot.at);
        slot.at->launch = launch;
    }
    return &slot.at->cells[at / CELL_BYTES % PAGE_CELLS];
}

uint32_t stretch_now() {
    int       thread = races_running.thread, warp = thread / 32;
    uint32_t &number = current_stretch[thread];
    if (number) {
        const stretch &last = stretches[number];
        if (last.block == block && last.epoch == seen[warp][warp] && last.warp_epoch == warp_epochs[warp]) return number;
    }
    stretches.push_back({block, seen[warp][warp], warp_epochs[warp], clock_now, thread});
    return number = (uint32_t)stretches.size() - 1;
}

bool is_ordered(const stretch &earlier, const stretch &now) {
    if (earlier.block != now.block) return blocks[earlier.block].handed_over > earlier.clock && blocks[now.block].handed_over > 0;
    int was = earlier.thread / 32, is = now.thread / 32;
    if (earlier.thread == now.thread || seen[is][was] > earlier.epoch) return true;
    return was == is && earlier.warp_epoch != now.warp_epoch;
}

/* "file.cu:12" of an address in the program, asked of addr2line. */
void name_place(uint32_t offset, char *text, size_t size) {
    char command[600], path[400] = "";
    snprintf(text, size, "an unknown place");
    snprintf(command, sizeof command, "addr2line -e /proc/%d/exe 0x%x 2>/dev/null", (int)getpid(), (unsigned)(offset - 1));
    FILE *pipe = popen(command, "r");
    if (!pipe) return;
    if (fgets(path, sizeof path, pipe)) {
        path[strcspn(path, " \n")] = 0;
        const char *tail = strstr(path, "src/cuda/");
        if (!tail) tail = strstr(path, "tests/");
        snprintf(text, size, "%s", tail ? tail : path);
    }
    pclose(pipe);
}

inline uint32_t offset_of(const void *pc) { return (uint32_t)(reinterpret_cast<uintptr_t>(pc) - reinterpret_cast<uintptr_t>(program)); }

const char *memory_name(const unsigned char *at) {
    if (at >= shared_begin && at < shared_end) return "dynamic shared memory";
    if (at >= reinterpret_cast<unsigned char *>(&__data_start) && at < reinterpret_cast<unsigned char *>(&_end)) return "static shared memory";
    return "global memory";
}

[[noreturn]] void report(const unsigned char *at, const stretch &earlier, uint32_t earlier_at, bool earlier_writes, bool writes, const void *pc) {
    char here[200], there[200];
    name_place(offset_of(pc), here, sizeof here);
    name_place(earlier_at, there, sizeof there);
    const stretch now = stretches[stretch_now()];
    races_running.thread = -1;
    wefti_shim_fail("race in %s: thread %d %s at %s what thread %d%s %s at %s, and nothing orders them", memory_name(at), now.thread,
                    writes ? "writes" : "reads", here, earlier.thread, earlier.block == now.block ? "" : " of another block",
                    earlier_writes ? "has written" : "has read", there);
}

bool is_shared(const unsigned char *at) { return memory_name(at)[0] != 'g'; }

inline void access_cell(const unsigned char *at, unsigned mask, bool writes, const void *pc) {
    cell    *c = cell_of(reinterpret_cast<uintptr_t>(at));
    uint32_t me = races_running.stretch ? races_running.stretch : (races_running.stretch = stretch_now());
    bool     shared = is_shared(at);
    if (c->writer == me && (c->written & mask) == mask && c->readers[0] == 0 && (!shared || c->block == block)) return;
    if (!writes && c->readers[0] == me && (c->read[0] & mask) == mask && (!shared || c->block == block)) return;
    if (shared && c->block != block) *c = cell(), c->block = block; /* another block's shared memory is other memory */
    if (c->writer && c->written & mask && c->writer != me && !is_ordered(stretches[c->writer], stretches[me]))
        report(at, stretches[c->writer], c->writer_at, true, writes, pc);
    if (writes) {
        for (int i = 0; i < 2; i++)
            if (c->readers[i] && c->read[i] & mask && c->readers[i] != me && !is_ordered(stretches[c->readers[i]], stretches[me]))
                report(at, stretches[c->readers[i]], c->reader_at, false, true, pc);
        c->written = (uint8_t)(c->writer == me ? c->written | mask : mask);
        c->writer = me;
        c->writer_at = offset_of(pc);
        c->filled = (uint8_t)(c->filled | mask);
        return;
    }
    if (shared && (c->filled & mask) != mask) {
        char here[200];
        name_place(offset_of(pc), here, sizeof here);
        int thread = races_running.thread;
        races_running.thread = -1;
        wefti_shim_fail("thread %d reads %s at %s that its block has not written", thread, memory_name(at), here);
    }
    for (int i = 0; i < 2; i++)
        if (c->readers[i] && stretches[c->readers[i]].block == block && stretches[c->readers[i]].thread == races_running.thread) {
            c->read[i] = (uint8_t)(c->readers[i] == me ? c->read[i] | mask : mask);
            c->readers[i] = me;
            c->reader_at = offset_of(pc);
            return;
        }
    c->readers[1] = c->readers[0];
    c->read[1] = c->read[0];
    c->readers[0] = me;
    c->read[0] = (uint8_t)mask;
    c->reader_at = offset_of(pc);
}

inline void access(const void *address, size_t bytes, bool writes, const void *pc) {
    const unsigned char *at = static_cast<const unsigned char *>(address);
    if (races_running.thread < 0) return; /* host code */
    looked_at++;
    if (address >= races_running.stack && address < races_running.stack_end) return;
    if (address >= &wefti_shim_place_now && address < &wefti_shim_place_now + 1) return; /* threadIdx and its like */
    while (bytes > 0) {
        size_t   skip = reinterpret_cast<uintptr_t>(at) % CELL_BYTES, here = CELL_BYTES - skip < bytes ? CELL_BYTES - skip : bytes;
        access_cell(at, ((1u << here) - 1) << skip, writes, pc);
        at += here;
        bytes -= here;
    }
}

} // namespace

void races_begin_launch() {
    Dl_info info;
    if (!program && dladdr(&__data_start, &info)) program = info.dli_fbase;
    launch++;
    looked_at = 0;
    clock_now = 0;
    block = 0;
    stretches.assign(1, {0, 0, 0, 0, -1});
    blocks.assign(1, {0});
    memset(current_stretch, 0, sizeof current_stretch);
}
void races_begin_block(const unsigned char *shared, size_t shared_bytes) {
    block++;
    blocks.push_back({0});
    shared_begin = shared;
    shared_end = shared + shared_bytes;
}
bool races_are_looked_for() { return looked_at < ENOUGH; }
void races_order_warps(uint32_t warps) {
    uint32_t joint[WARPS] = {0};
    for (int w = 0; w < WARPS; w++)
        for (int v = 0; v < WARPS && warps >> w & 1u; v++)
            if (seen[w][v] > joint[v]) joint[v] = seen[w][v];
    for (int w = 0; w < WARPS; w++) {
        if (!(warps >> w & 1u)) continue;
        memcpy(seen[w], joint, sizeof joint);
        seen[w][w]++;
    }
    for (int w = 0; w < WARPS; w++) /* what they did before is behind all of them */
        for (int v = 0; v < WARPS; v++)
            if (warps >> w & 1u && warps >> v & 1u && v != w) seen[w][v] = joint[v] + 1;
}
void races_order_warp(int warp) { warp_epochs[warp]++; }
void races_atomic() {
    uint32_t *hub = seen[WARPS], *mine = races_running.thread < 0 ? nullptr : seen[races_running.thread / 32];
    if (!mine) return;
    for (int v = 0; v < WARPS; v++) hub[v] = mine[v] = hub[v] > mine[v] ? hub[v] : mine[v];
    hub[races_running.thread / 32] = ++mine[races_running.thread / 32];
    blocks[block].handed_over = ++clock_now;
    races_running.stretch = 0;
}

} // namespace weft_host

using namespace weft_host;

/* What the compiler calls. */
extern "C" {
#define HERE __builtin_return_address(0)
#define ACCESS(BYTES)                                                                                \
    void __tsan_read##BYTES(void *at) { access(at, BYTES, false, HERE); }                            \
    void __tsan_write##BYTES(void *at) { access(at, BYTES, true, HERE); }                            \
    void __tsan_unaligned_read##BYTES(void *at) { access(at, BYTES, false, HERE); }                  \
    void __tsan_unaligned_write##BYTES(void *at) { access(at, BYTES, true, HERE); }                  \
    void __tsan_volatile_read##BYTES(void *at) { access(at, BYTES, false, HERE); }                   \
    void __tsan_volatile_write##BYTES(void *at) { access(at, BYTES, true, HERE); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void *at, unsigned long bytes) { access(at, bytes, false, HERE); }
void __tsan_write_range(void *at, unsigned long bytes) { access(at, bytes, true, HERE); }
void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_vptr_update(void *, void *) {}
}
