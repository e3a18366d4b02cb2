/* ps-lite's parameter server, as MXNet's kvstore uses it: the yardstick for Weft's own. Prints one JSON object a line and case, from the worker.
 *
 * usage: pslite_server [--min BYTES] [--max BYTES] [--seconds S] [--windows N] [--rows N]
 *        as scheduler, server or worker, by ps-lite's own environment variables (DMLC_ROLE and the others)
 *
 * A dense table is one key with many values, and a row of a sparse one is a key with 64 values, pushed without a copy (ZPush) and added to what the
 * server has as it comes. Rows are found in two ways: by a hash of the key, as ps-lite's own handle has it (command 1), and by the number of the row, as
 * MXNet has it (command 2). Each case is checked once, warmed up, and timed in windows of equally many calls that are each waited for. */
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <chrono>
#include <string>
#include <unordered_map>
#include <vector>

#include "ps/ps.h"

namespace {

constexpr int      WIDTH = 64, MAX_WINDOWS = 64;
constexpr ps::Key  STRIDE = 2654435761u;
enum Command { DENSE, HASHED, NUMBERED };

/* --- server --- */

std::unordered_map<ps::Key, ps::SArray<float>> dense;
std::unordered_map<ps::Key, size_t>            places;
std::vector<float>                             hashed, numbered;

size_t row_of(int command, ps::Key key) {
    if (command == NUMBERED) return key / STRIDE;
    auto found = places.emplace(key, places.size());
    if (found.second && hashed.size() < places.size() * WIDTH) hashed.resize(std::max<size_t>(hashed.size() * 2, WIDTH * 1024));
    return found.first->second;
}

void push(int command, const ps::KVPairs<float> &data) {
    if (command == DENSE) {
        auto &stored = dense[data.keys[0]];
        if (stored.size() < data.vals.size()) stored.resize(data.vals.size(), 0);
        float       *out = stored.data();
        const float *in = data.vals.data();
        for (size_t i = 0, n = data.vals.size(); i < n; i++) out[i] += in[i];
        return;
    }
    auto &table = command == HASHED ? hashed : numbered;
    if (command == NUMBERED) table.resize(std::max(table.size(), (data.keys.back() / STRIDE + 1) * WIDTH));
    for (size_t i = 0; i < data.keys.size(); i++) {
        size_t       row = row_of(command, data.keys[i]);
        float       *out = table.data() + row * WIDTH;
        const float *in = data.vals.data() + i * WIDTH;
        for (int j = 0; j < WIDTH; j++) out[j] += in[j];
    }
}

void handle(const ps::KVMeta &meta, const ps::KVPairs<float> &data, ps::KVServer<float> *server) {
    ps::KVPairs<float> reply;
    if (meta.push) push(meta.cmd, data);
    if (meta.pull) {
        reply.keys = data.keys;
        if (meta.cmd == DENSE) {
            reply.vals = dense[data.keys[0]]; /* not copied: nobody pushes meanwhile */
            reply.lens = {static_cast<int>(reply.vals.size())};
        } else {
            auto &table = meta.cmd == HASHED ? hashed : numbered;
            reply.vals.resize(data.keys.size() * WIDTH);
            for (size_t i = 0; i < data.keys.size(); i++)
                memcpy(reply.vals.data() + i * WIDTH, table.data() + row_of(meta.cmd, data.keys[i]) * WIDTH, WIDTH * sizeof(float));
        }
    }
    server->Response(meta, reply);
}

/* --- worker --- */

struct options {
    size_t smallest = 4096, largest = 64 << 20, rows = 1000000;
    double seconds = 0.02;
    int    windows = 30;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct table {
    ps::KVWorker<float>  *worker;
    int                   command;
    ps::SArray<ps::Key>   keys;
    ps::SArray<int>       lens;
    ps::SArray<float>     send, receive;

    void push() { worker->Wait(worker->ZPush(keys, send, lens, command)); }
    void pull() { worker->Wait(worker->ZPull(keys, &receive, command == DENSE ? &lens : nullptr, command)); }
    void both() { worker->Wait(worker->ZPushPull(keys, send, &receive, command == DENSE ? &lens : nullptr, command)); }
};

bool verify(table &t) {
    for (size_t i = 0; i < t.send.size(); i++) t.send[i] = static_cast<float>(i % 7), t.receive[i] = -1;
    t.push();
    t.push();
    t.pull();
    for (size_t i = 0; i < t.send.size(); i++)
        if (t.receive[i] != 2 * t.send[i]) {
            fprintf(stderr, "error: element %zu is %g, not %g\n", i, t.receive[i], 2 * t.send[i]);
            return false;
        }
    return true;
}

void report(const char *name, size_t bytes, double moved, double *times, int windows) {
    std::sort(times, times + windows);
    double median = times[windows / 2];
    printf("{\"bench\": \"pslite\", \"case\": \"%zu bytes, %s\", \"bytes\": %zu, \"metric\": \"time\", \"unit\": \"us\", \"median\": %.3f, \"low\": %.3f, "
           "\"high\": %.3f, \"runs\": %d, \"busbw\": %.4f}\n",
           bytes, name, bytes, median * 1e6, times[0] * 1e6, times[windows - 1] * 1e6, windows, moved / median / 1e9);
    fflush(stdout);
}

void measure(const options &o, table &t, const char *name, void (table::*call)(), double directions) {
    double times[MAX_WINDOWS], one = 1e9;
    for (int i = 0; i < 3; i++) {
        double begin = now();
        (t.*call)();
        one = std::min(one, now() - begin);
    }
    int64_t count = std::max<int64_t>(1, std::min<int64_t>(100000, static_cast<int64_t>(o.seconds / one)));
    for (int w = 0; w < o.windows; w++) {
        double begin = now();
        for (int64_t i = 0; i < count; i++) (t.*call)();
        times[w] = (now() - begin) / static_cast<double>(count);
    }
    size_t bytes = t.send.size() * sizeof(float);
    report(name, bytes, directions * static_cast<double>(bytes), times, o.windows);
}

bool run_dense(const options &o, ps::KVWorker<float> *worker, ps::Key key, size_t bytes) {
    table  t{worker, DENSE, {}, {}, {}, {}};
    size_t count = bytes / sizeof(float);
    t.keys.push_back(key);
    t.lens.push_back(static_cast<int>(count));
    t.send.resize(count, 0);
    t.receive.resize(count, 0);
    if (!verify(t)) return false;
    if (bytes == 8) {
        measure(o, t, "round trip", &table::pull, 1);
        return true;
    }
    measure(o, t, "dense push", &table::push, 1);
    measure(o, t, "dense pull", &table::pull, 1);
    measure(o, t, "dense push-pull", &table::both, 2);
    return true;
}

bool run_sparse(const options &o, ps::KVWorker<float> *worker, int command) {
    table t{worker, command, {}, {}, {}, {}};
    t.keys.resize(o.rows, 0);
    for (size_t i = 0; i < o.rows; i++) t.keys[i] = static_cast<ps::Key>(i) * STRIDE + 1;
    t.send.resize(o.rows * WIDTH, 0);
    t.receive.resize(o.rows * WIDTH, 0);
    if (!verify(t)) return false;
    measure(o, t, command == HASHED ? "sparse push, hashed" : "sparse push, numbered", &table::push, 1);
    measure(o, t, command == HASHED ? "sparse pull, hashed" : "sparse pull, numbered", &table::pull, 1);
    return true;
}

bool work(const options &o) {
    ps::KVWorker<float> worker(0, 0);
    ps::Key             key = 0;
    if (!run_dense(o, &worker, key++, 8)) return false;
    for (size_t bytes = o.smallest; bytes && bytes <= o.largest; bytes *= 4)
        if (!run_dense(o, &worker, key++, bytes)) return false;
    return !o.rows || (run_sparse(o, &worker, HASHED) && run_sparse(o, &worker, NUMBERED));
}

double option(char **argv, const char *name, double value) {
    for (int i = 1; argv[i] && argv[i + 1]; i++)
        if (strcmp(argv[i], name) == 0) value = atof(argv[i + 1]);
    return value;
}

}  // namespace

int main(int argc, char **argv) {
    options o;
    o.smallest = static_cast<size_t>(option(argv, "--min", 4096));
    o.largest = static_cast<size_t>(option(argv, "--max", 64 << 20));
    o.rows = static_cast<size_t>(option(argv, "--rows", 1e6));
    o.seconds = option(argv, "--seconds", 0.02);
    o.windows = static_cast<int>(std::min(option(argv, "--windows", 30), static_cast<double>(MAX_WINDOWS)));
    (void)argc;
    bool right = true;
    ps::Start(0);
    if (ps::IsServer()) {
        auto *server = new ps::KVServer<float>(0);
        server->set_request_handle(handle);
        ps::RegisterExitCallback([server]() { delete server; });
    }
    if (ps::IsWorker()) right = work(o);
    ps::Finalize(0, true);
    return right ? 0 : 1;
}
