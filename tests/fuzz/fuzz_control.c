/* Messages of the control channel: whatever rank 0 hears from two others, or another rank from rank 0, an exchange ends within its time, and
 * nobody says more than everyone's bytes. The first byte's low bit says which; at rank 0 both peers say the same. */
#include "fuzz_net.h"
#include "transport/control.h"

typedef struct talk {
    wefti_stream   stream; /* first */
    const uint8_t *bytes;
    size_t         left;
} talk;

static talk   talks[3];
static size_t talk_count;

static weft_status take_all(wefti_stream *stream, const void *bytes, size_t count, size_t *sent_out) {
    (void)stream, (void)bytes;
    *sent_out = count;
    return WEFT_OK;
}
static weft_status give(wefti_stream *stream, void *bytes, size_t most, size_t *received_out) {
    talk *from = (talk *)stream;
    if (from->left == 0) return WEFT_E_AGAIN;
    *received_out = most < from->left ? most : from->left;
    memcpy(bytes, from->bytes, *received_out);
    from->bytes += *received_out;
    from->left -= *received_out;
    return WEFT_OK;
}
static void hang_up(wefti_stream *stream) { (void)stream; }
static const wefti_stream_ops talk_ops = {take_all, give, hang_up};

static weft_status connect_to(void *context, int32_t peer, wefti_stream **stream_out) {
    const talk *what = context;
    (void)peer;
    if (talk_count == WEFTI_COUNT(talks)) return WEFT_E_NO_MEMORY;
    talks[talk_count] = *what;
    *stream_out = &talks[talk_count++].stream;
    return WEFT_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    talk           what = {{&talk_ops}, data + 1, size - 1};
    wefti_network  network = {.wire_name = "none", .stream = connect_to, .context = &what};
    wefti_place    place = {.rank = data[0] & 1, .size = 3, .launcher = "none", .store_ports = 1, .store_descriptor = -1};
    wefti_fault   *fault = NULL;
    wefti_control *control = NULL;
    uint64_t       mine = 1, all[3];
    talk_count = 0;
    if (wefti_fault_create(&fuzz_host, &fault) != WEFT_OK) abort();
    wefti_control_options options = {.host = &fuzz_host, .place = &place, .network = &network, .timeout_ns = WEFTI_SECOND_NS,
                                     .no_thread = true, .fault = fault};
    if (wefti_control_open(&options, &control) != WEFT_OK) abort();
    uint64_t begin_ns = fuzz_time_ns;
    for (int round = 0; round < 3; round++)
        if (wefti_control_exchange(control, "numbers", &mine, sizeof mine, WEFTI_SECOND_NS, all) != WEFT_OK) break;
    if (fuzz_time_ns - begin_ns > 10 * WEFTI_SECOND_NS) abort();
    int32_t rank = wefti_fault_rank(fault);
    if (rank < -1 || rank >= place.size) abort();
    wefti_control_close(control);
    wefti_fault_release(fault);
    return 0;
}
