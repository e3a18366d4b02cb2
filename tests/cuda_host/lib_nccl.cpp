/* A stand-in of libnccl.so.2: ranks are processes of this machine, which exchange bytes through rings in a shared file.
 *
 * Every call becomes messages between pairs of ranks and, at the end, a computation in the order of the ranks; a group of calls is one piece of
 * work, whose messages move side by side. Work sits in its stream and gets on whenever the stream is looked at, so that nothing blocks but
 * what blocks on a GPU. Messages begin with what they are: ranks that disagree get an error. Communicators are non-blocking only.
 *
 * WEFT_NCCL_STAND_IN says what goes wrong, as NAME=VALUE, separated by commas; VALUE may end in @R, which means rank R alone:
 *   version=N  what ncclGetVersion says            slow=N    looks until a communicator, and each call on it, is taken
 *   error=N    a remote error after N calls        hang=N    takes no part in calls from the N-th on
 *   init=hang  no communicator ever stands         abort=hang ncclCommAbort does not return */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <fcntl.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "cuda_host/stand_in.h"

namespace {

enum { MOST = 8, RING = 64 << 10, HOST_NAME = 64 };

struct channel {
    alignas(64) std::atomic<uint64_t> written;
    alignas(64) std::atomic<uint64_t> read;
    unsigned char bytes[RING];
};
struct meeting {
    std::atomic<int> come, sizes[MOST];
    char             hosts[MOST][HOST_NAME]; /* NCCL_HOSTID, or "" */
    channel          channels[MOST][MOST];   /* [from][to] */
};
struct id_text {
    char path[NCCL_UNIQUE_ID_BYTES];
};
struct header {
    uint64_t kind, bytes;
};

/* The value of NAME for this rank; `otherwise` where it is not said. "hang" is 1. */
long planted(const char *name, int rank, long otherwise) {
    const char *text = getenv("WEFT_NCCL_STAND_IN");
    size_t      length = strlen(name);
    while (text && *text) {
        if (strncmp(text, name, length) == 0 && text[length] == '=') {
            const char *value = text + length + 1;
            char       *end;
            long        number = strncmp(value, "hang", 4) == 0 ? 1 : strtol(value, &end, 10);
            if (strncmp(value, "hang", 4) == 0) end = const_cast<char *>(value) + 4;
            if (*end != '@' || rank < 0 || atoi(end + 1) == rank) return number;
        }
        text = strchr(text, ',');
        if (text) text++;
    }
    return otherwise;
}

/* --- a communicator --- */

struct work;
struct state {
    meeting          *met = nullptr;
    int               rank = 0, size = 0;
    std::string       path;
    bool              standing = false;
    std::atomic<bool> aborted{false};
    ncclResult_t      error = ncclSuccess;
    std::string       words;
    long              looks = 0, calls = 0;
    std::deque<std::pair<cudaStream_t, std::shared_ptr<work>>> taken; /* not on its stream yet */
    ~state() {
        if (met) munmap(met, sizeof *met);
    }
};

} // namespace

struct ncclComm {
    std::shared_ptr<state> of;
};

namespace {

struct transfer {
    bool           sends;
    int            peer;
    header         head;
    unsigned char *at;
    size_t         moved; /* header included */
};
struct work {
    std::shared_ptr<state>                  of;
    std::vector<transfer>                   transfers;
    std::vector<std::vector<unsigned char>> held;
    std::vector<std::function<void()>>      ends;
    bool                                    hangs = false;
};

/* Moves what can be moved of a message; whether all of it is. */
bool move(state &of, transfer &one) {
    channel &ring = one.sends ? of.met->channels[of.rank][one.peer] : of.met->channels[one.peer][of.rank];
    size_t   all = sizeof one.head + one.head.bytes;
    header   theirs;
    while (one.moved < all) {
        uint64_t written = ring.written.load(std::memory_order_acquire), read = ring.read.load(std::memory_order_acquire);
        size_t   at = (one.sends ? written : read) % RING, room = one.sends ? RING - (size_t)(written - read) : (size_t)(written - read);
        bool     in_head = one.moved < sizeof one.head;
        if (!one.sends && one.moved == 0 && room < sizeof one.head) return false; /* a header is taken in one go, though the ring may end in it */
        unsigned char *mine = in_head ? (unsigned char *)(one.sends ? &one.head : &theirs) + one.moved : one.at + (one.moved - sizeof one.head);
        size_t         now = std::min({(in_head ? sizeof one.head : all) - one.moved, room, (size_t)RING - at});
        if (now == 0) return false;
        if (one.sends) memcpy(ring.bytes + at, mine, now), ring.written.store(written + now, std::memory_order_release);
        else memcpy(mine, ring.bytes + at, now), ring.read.store(read + now, std::memory_order_release);
        one.moved += now;
        if (one.sends || one.moved != sizeof one.head || memcmp(&theirs, &one.head, sizeof theirs) == 0) continue;
        of.error = ncclInvalidUsage;
        of.words = "rank " + std::to_string(one.peer) + " makes another call";
        return false;
    }
    return true;
}

/* Whether the work is over, as far as others are concerned. */
bool pump(work &self) {
    bool all = true, sent[MOST] = {}, received[MOST] = {}; /* messages of a pair keep their order */
    if (self.of->aborted) return true;
    if (self.hangs || self.of->error != ncclSuccess) return false;
    for (transfer &one : self.transfers) {
        bool &stuck = (one.sends ? sent : received)[one.peer];
        if (!stuck && !move(*self.of, one)) stuck = true;
        all = all && !stuck;
    }
    return all;
}

void put_on_stream(cudaStream_t stream, const std::shared_ptr<work> &self) {
    (void)wefti_stand_in_issue_when(stream, "NCCL", [self] { return pump(*self); }, [self] {
        if (!self->of->aborted)
            for (auto &end : self->ends) end();
        for (transfer &one : self->transfers) one.moved = 0; /* graphs run it again */
        return cudaSuccess;
    });
}

/* --- groups of calls --- */

thread_local int                                depth;
thread_local std::shared_ptr<work>              gathered;
thread_local cudaStream_t                       gathered_on;

ncclResult_t refuse(state &of, const char *why) {
    of.words = why;
    return ncclInvalidArgument;
}

ncclResult_t hand_over() {
    if (!gathered) return ncclSuccess;
    std::shared_ptr<work>  self = std::move(gathered);
    std::shared_ptr<state> of = self->of;
    gathered = nullptr;
    long number = of->calls++, hang = planted("hang", of->rank, -1), error = planted("error", of->rank, -1);
    self->hangs = hang >= 0 && number >= hang;
    if (error >= 0 && number >= error) of->error = ncclRemoteError, of->words = "the peer closed the connection";
    of->looks = planted("slow", of->rank, 0);
    if (of->looks == 0) return put_on_stream(gathered_on, self), ncclSuccess;
    of->taken.push_back({gathered_on, self});
    return ncclInProgress;
}

ncclResult_t begin(ncclComm_t comm, cudaStream_t stream) {
    state &of = *comm->of;
    if (!of.standing || of.aborted) return refuse(of, "the communicator does not stand");
    if (!of.taken.empty()) return refuse(of, "the communicator is still busy with the call before");
    if (of.error != ncclSuccess) return of.error;
    if (!gathered) gathered = std::make_shared<work>(), gathered->of = comm->of;
    if (gathered->of != comm->of) return refuse(of, "one communicator a group");
    gathered_on = stream;
    return ncclSuccess;
}
ncclResult_t end() { return depth > 0 ? ncclSuccess : hand_over(); }

size_t bytes_of(ncclDataType_t type) {
    switch (type) {
    case ncclInt8:
    case ncclUint8: return 1;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    default: return 8;
    }
}

void send(ncclComm_t comm, uint64_t kind, const void *from, size_t bytes, int peer) {
    gathered->transfers.push_back({true, peer, {kind, bytes}, (unsigned char *)const_cast<void *>(from), 0});
    (void)comm;
}
void receive(uint64_t kind, void *to, size_t bytes, int peer) {
    gathered->transfers.push_back({false, peer, {kind, bytes}, (unsigned char *)to, 0});
}

bool usable(const void *at, size_t bytes) { return bytes == 0 || wefti_stand_in_may_use(at, bytes); }

/* --- reductions --- */

template <typename T> T combine(ncclRedOp_t op, T a, T b) {
    switch (op) {
    case ncclProd: return (T)(a * b);
    case ncclMax: return a > b ? a : b;
    case ncclMin: return a < b ? a : b;
    default: return (T)(a + b);
    }
}
template <typename T> void fold(ncclRedOp_t op, void *into, const void *more, size_t count) {
    for (size_t i = 0; i < count; i++) static_cast<T *>(into)[i] = combine(op, static_cast<T *>(into)[i], static_cast<const T *>(more)[i]);
}
/* Rounded at every step, as NCCL does. */
template <typename T> void fold_half(ncclRedOp_t op, void *into, const void *more, size_t count) {
    for (size_t i = 0; i < count; i++) {
        T &a = static_cast<T *>(into)[i];
        a = T(combine<float>(op, (float)a, (float)static_cast<const T *>(more)[i]));
    }
}
void fold_any(ncclDataType_t type, ncclRedOp_t op, void *into, const void *more, size_t count) {
    switch (type) {
    case ncclFloat16: return fold_half<__half>(op, into, more, count);
    case ncclBfloat16: return fold_half<__nv_bfloat16>(op, into, more, count);
    case ncclInt32: return fold<int32_t>(op, into, more, count);
    case ncclFloat32: return fold<float>(op, into, more, count);
    case ncclFloat64: return fold<double>(op, into, more, count);
    case ncclInt64: return fold<int64_t>(op, into, more, count);
    default: return fold<uint8_t>(op, into, more, count);
    }
}

/* This rank's `mine` and what comes from the others, added up in the order of the ranks. */
void reduce(ncclComm_t comm, uint64_t kind, const void *mine, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op) {
    state &of = *comm->of;
    size_t bytes = count * bytes_of(type), first = gathered->held.size();
    for (int i = 0; i < of.size; i++) {
        gathered->held.emplace_back(bytes);
        if (i != of.rank) receive(kind, gathered->held.back().data(), bytes, i);
    }
    work *self = gathered.get(); /* lives as long as its ends */
    int   rank = of.rank, size = of.size;
    gathered->ends.push_back([=] {
        memcpy(self->held[first + (size_t)rank].data(), mine, bytes);
        for (int i = 1; i < size; i++) fold_any(type, op, self->held[first].data(), self->held[first + (size_t)i].data(), count);
        memcpy(to, self->held[first].data(), bytes);
    });
}

bool reducible(ncclDataType_t type, ncclRedOp_t op) { return type < ncclNumTypes && op >= ncclSum && op <= ncclMin; }

/* Opens the shared file; whether all have come. */
ncclResult_t stand(state &of) {
    if (of.standing) return ncclSuccess;
    if (planted("init", of.rank, 0) || of.looks-- > 0 || of.met->come.load() < of.size) return ncclInProgress;
    for (int i = 0; i < of.size; i++)
        for (int j = 0; j < i; j++)
            if (strcmp(of.met->hosts[i], of.met->hosts[j]) == 0) {
                of.words = "Duplicate GPU detected";
                return of.error = ncclInvalidUsage;
            }
    of.standing = true;
    if (of.rank == 0) unlink(of.path.c_str());
    return ncclSuccess;
}

} // namespace

extern "C" {

ncclResult_t ncclGetVersion(int *version) {
    const char *rank = getenv("WEFT_RANK");
    *version = (int)planted("version", rank ? atoi(rank) : -1, NCCL_VERSION_CODE);
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id_out) {
    id_text text = {};
    snprintf(text.path, sizeof text.path, "%s/weft-nccl-stand-in-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    int file = mkstemp(text.path);
    if (file < 0 || ftruncate(file, (off_t)sizeof(meeting)) != 0) return ncclSystemError;
    close(file);
    memcpy(id_out, &text, sizeof text);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm_out, int size, ncclUniqueId id, int rank, ncclConfig_t *config) {
    *comm_out = nullptr;
    if (size < 1 || size > MOST || rank < 0 || rank >= size || !config || config->blocking != 0) return ncclInvalidArgument;
    id_text text;
    memcpy(&text, &id, sizeof text);
    int file = open(text.path, O_RDWR | O_CLOEXEC);
    if (file < 0) return ncclSystemError;
    void *at = mmap(nullptr, sizeof(meeting), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (at == MAP_FAILED) return ncclSystemError;
    auto of = std::make_shared<state>();
    of->met = static_cast<meeting *>(at);
    of->rank = rank;
    of->size = size;
    of->path = text.path;
    of->looks = planted("slow", rank, 0);
    const char *host = getenv("NCCL_HOSTID");
    snprintf(of->met->hosts[rank], HOST_NAME, "%s", host ? host : "");
    of->met->come.fetch_add(1);
    *comm_out = new ncclComm{of};
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error_out) {
    state &of = *comm->of;
    *error_out = of.error;
    if (of.error != ncclSuccess) return ncclSuccess;
    *error_out = stand(of);
    if (*error_out != ncclSuccess || of.taken.empty()) return ncclSuccess;
    if (of.looks-- > 0) return *error_out = ncclInProgress, ncclSuccess;
    auto one = of.taken.front();
    of.taken.pop_front();
    put_on_stream(one.first, one.second);
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclInProgress; }
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    delete comm;
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
    comm->of->aborted = true;
    if (comm->of->rank == 0) unlink(comm->of->path.c_str());
    while (planted("abort", comm->of->rank, 0)) usleep(1000);
    delete comm;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
    switch (result) {
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInvalidUsage: return "invalid usage";
    case ncclInvalidArgument: return "invalid argument";
    case ncclSystemError: return "unhandled system error";
    default: return "another error";
    }
}
const char *ncclGetLastError(ncclComm_t comm) { return comm ? comm->of->words.c_str() : ""; }

ncclResult_t ncclGroupStart(void) { return depth++, ncclSuccess; }
ncclResult_t ncclGroupEnd(void) { return --depth > 0 ? ncclSuccess : hand_over(); }

#define BEGIN()                                       \
    ncclResult_t result = begin(comm, stream);        \
    if (result != ncclSuccess) return result;         \
    size_t bytes = count * bytes_of(type);            \
    int    size = comm->of->size, rank = comm->of->rank

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    BEGIN();
    if (!usable(from, bytes) || !usable(to, bytes) || !reducible(type, op)) return refuse(*comm->of, "allreduce: bad memory or reduction");
    for (int i = 0; i < size; i++)
        if (i != rank) send(comm, 1, from, bytes, i);
    reduce(comm, 1, from, to, count, type, op);
    return end();
}
ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    BEGIN();
    const char *parts = static_cast<const char *>(from);
    if (!usable(from, bytes * (size_t)size) || !usable(to, bytes) || !reducible(type, op)) return refuse(*comm->of, "reduce-scatter: bad memory or reduction");
    for (int i = 0; i < size; i++)
        if (i != rank) send(comm, 2, parts + (size_t)i * bytes, bytes, i);
    reduce(comm, 2, parts + (size_t)rank * bytes, to, count, type, op);
    return end();
}
ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
    BEGIN();
    char *parts = static_cast<char *>(to);
    if (!usable(from, bytes) || !usable(to, bytes * (size_t)size)) return refuse(*comm->of, "allgather: bad memory");
    for (int i = 0; i < size; i++) {
        if (i == rank) continue;
        send(comm, 3, from, bytes, i);
        receive(3, parts + (size_t)i * bytes, bytes, i);
    }
    gathered->ends.push_back([=] { memmove(parts + (size_t)rank * bytes, from, bytes); });
    return end();
}
ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t comm, cudaStream_t stream) {
    BEGIN();
    if (root < 0 || root >= size || (rank == root && !usable(from, bytes)) || !usable(to, bytes)) return refuse(*comm->of, "broadcast: bad root or memory");
    for (int i = 0; i < size && rank == root; i++)
        if (i != rank) send(comm, 4, from, bytes, i);
    if (rank != root) receive(4, to, bytes, root);
    else gathered->ends.push_back([=] { memmove(to, from, bytes); });
    return end();
}
ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
    BEGIN();
    if (root < 0 || root >= size || (rank == root && !usable(to, bytes)) || !usable(from, bytes) || !reducible(type, op))
        return refuse(*comm->of, "reduce: bad root, memory or reduction");
    if (rank != root) send(comm, 5, from, bytes, root);
    else reduce(comm, 5, from, to, count, type, op);
    return end();
}
ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    BEGIN();
    if (peer < 0 || peer >= size || peer == rank || !usable(from, bytes)) return refuse(*comm->of, "send: bad peer or memory");
    send(comm, 6, from, bytes, peer);
    return end();
}
ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    BEGIN();
    if (peer < 0 || peer >= size || peer == rank || !usable(to, bytes)) return refuse(*comm->of, "receive: bad peer or memory");
    receive(6, to, bytes, peer);
    return end();
}

} /* extern "C" */
