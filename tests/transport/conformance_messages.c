/* Cases of messages: order, tags, sizes, and who receives what.
 * Each runs on connected ranks, and leaves nothing under way. */
#include <stdlib.h>
#include <string.h>

#include "conformance_cases.h"

static size_t awkward_sizes(const rank_world *world, size_t *sizes) {
    size_t eager = world->wire->can.eager_bytes, inlined = world->wire->can.inline_bytes;
    const size_t list[] = {0,  1,  3,    7,    8,     33,        inlined, inlined + 1, 64,     65,         1000,
                           4096, 8191, eager, eager + 1, 65536, 100003,  1 << 20,     (3 << 20) + 7};
    memcpy(sizes, list, sizeof list);
    return WEFTI_COUNT(list);
}

static void carries_every_size(rank_world *world) {
    size_t   sizes[32], count = awkward_sizes(world, sizes);
    uint8_t *out = take(world, 4 << 20), *in = take(world, 4 << 20);
    for (size_t s = 0; s < count; s++)
        for (int32_t step = 1; step < world->size; step++) {
            int32_t to = (world->rank + step) % world->size, from = (world->rank + world->size - step) % world->size;
            fill(out, sizes[s], (uint32_t)(world->rank * 100 + to));
            memset(in, 0xee, sizes[s] + 8);
            wefti_wire_op recv = wefti_wire_recv(from, TAG(s), in, sizes[s]);
            wefti_wire_op send = wefti_wire_send(to, TAG(s), out, sizes[s]);
            recv.flags = send.flags = WEFTI_WIRE_SILENT;
            world_post(world, &recv);
            world_post(world, &send);
            world_finish(world, &recv);
            world_finish(world, &send);
            CHECK(recv.status == WEFT_OK && send.status == WEFT_OK, "%zu bytes", sizes[s]);
            CHECK(recv.done_bytes == sizes[s] && recv.done_peer == from, "%zu bytes from %d", recv.done_bytes,
                  (int)recv.done_peer);
            CHECK(filled(in, sizes[s], (uint32_t)(from * 100 + world->rank)), "wrong content of %zu bytes", sizes[s]);
            CHECK(in[sizes[s]] == 0xee, "wrote past the end of %zu bytes", sizes[s]);
        }
    free(out);
    free(in);
}

static void keeps_the_order_of_a_tag(rank_world *world) {
    enum { COUNT = 300 };
    if (world->rank == 0)
        for (uint32_t i = 0; i < COUNT; i++) {
            uint32_t message[40] = {i};
            world_send(world, 1, TAG(5), message, i % 2 ? 4 : sizeof message);
        }
    if (world->rank == 1) {
        wefti_wire_op *ops = take(world, COUNT * sizeof *ops);
        uint32_t(*got)[40] = take(world, COUNT * sizeof *got);
        for (uint32_t i = 0; i < COUNT; i++) {
            ops[i] = wefti_wire_recv(0, TAG(5), got[i], sizeof got[i]);
            ops[i].flags = WEFTI_WIRE_SILENT;
            world_post(world, &ops[i]);
            if (i % 7 == 0) world_poll(world, world_now());
        }
        for (uint32_t i = 0; i < COUNT; i++) {
            world_finish(world, &ops[i]);
            CHECK(ops[i].status == WEFT_OK && got[i][0] == i, "message %u came as the %u-th", got[i][0], i);
            CHECK(ops[i].done_bytes == (i % 2 ? 4 : sizeof got[i]), "%zu bytes", ops[i].done_bytes);
        }
        free(ops);
        free(got);
    }
}

/* Receives are posted in the opposite order of the sends, small and large mixed: no tag may wait for another. */
static void lets_no_tag_wait_for_another(rank_world *world) {
    enum { COUNT = 24 };
    static const size_t sizes[] = {8, 300000, 40, 9000, 1 << 20, 0};
    if (spectator(world)) return;
    wefti_wire_op *ops = take(world, COUNT * sizeof *ops);
    uint8_t       *memory[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        size_t   bytes = sizes[i % WEFTI_COUNT(sizes)];
        uint32_t which = world->rank == 0 ? i : COUNT - 1 - i;
        bytes = sizes[which % WEFTI_COUNT(sizes)];
        memory[i] = take(world, bytes);
        if (world->rank == 0) {
            fill(memory[i], bytes, which);
            ops[i] = wefti_wire_send(1, TAG(which), memory[i], bytes);
        } else {
            ops[i] = wefti_wire_recv(0, TAG(which), memory[i], bytes);
        }
        ops[i].flags = WEFTI_WIRE_SILENT;
        world_post(world, &ops[i]);
        if (world->rank == 1) { /* each alone, so that the others have to wait aside */
            world_finish(world, &ops[i]);
            CHECK(ops[i].status == WEFT_OK && filled(memory[i], bytes, which), "message %u", which);
        }
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        world_finish(world, &ops[i]);
        free(memory[i]);
    }
    free(ops);
}

static void keeps_early_messages(rank_world *world) {
    enum { COUNT = 400 };
    const size_t bytes = world->wire->can.eager_bytes < 5000 ? world->wire->can.eager_bytes : 5000;
    uint8_t *buffer = take(world, bytes);
    if (world->rank == 0)
        for (uint32_t i = 0; i < COUNT; i++) {
            fill(buffer, bytes, i);
            world_send(world, 1, TAG(i % 10), buffer, bytes);
        }
    if (world->rank == 1) {
        for (int i = 0; i < 1000; i++) world_poll(world, world_now()); /* let them pile up */
        for (uint32_t tag = 10; tag-- > 0;)
            for (uint32_t i = tag; i < COUNT; i += 10) {
                world_recv(world, 0, TAG(tag), buffer, bytes);
                CHECK(filled(buffer, bytes, i), "message %u", i);
            }
    }
    free(buffer);
}

/* The last receive is posted when all have come as far as they go without one. */
static void keeps_an_early_message_of_every_size(rank_world *world) {
    size_t        sizes[32], count = awkward_sizes(world, sizes);
    wefti_wire_op ops[32];
    uint8_t      *memory[32];
    for (size_t s = 0; s < count; s++) {
        memory[s] = take(world, sizes[s] + 1);
        if (world->rank > 1) continue;
        ops[s] = world->rank == 0 ? wefti_wire_send(1, TAG(s), memory[s], sizes[s]) : wefti_wire_recv(0, TAG(s), memory[s], sizes[s]);
        ops[s].flags = WEFTI_WIRE_SILENT;
        if (world->rank != 0) continue;
        fill(memory[s], sizes[s], (uint32_t)s);
        world_post(world, &ops[s]);
        if (sizes[s] <= world->wire->can.eager_bytes) world_finish(world, &ops[s]); /* though nobody has asked for it */
    }
    world_barrier(world);
    for (size_t s = count; s-- > 0 && world->rank < 2;) {
        if (world->rank == 1) world_post(world, &ops[s]);
        world_finish(world, &ops[s]);
        CHECK(ops[s].status == WEFT_OK && filled(memory[s], sizes[s], (uint32_t)s), "%zu bytes", sizes[s]);
    }
    for (size_t s = 0; s < count; s++) free(memory[s]);
}

typedef struct pieces {
    uint8_t *copy; /* of what was handed out */
    size_t   bytes, most;
    bool     ordered;
} pieces;

static void note_piece(wefti_wire_op *op, const void *data, size_t offset, size_t bytes) {
    pieces *got = op->piece_context;
    got->ordered &= offset == got->bytes && offset % 4096 == 0 && bytes > 0 && offset + bytes <= got->most;
    if (!got->ordered) return;
    memcpy(got->copy + offset, data, bytes);
    got->bytes += bytes;
}

/* From the left neighbour, or from this rank itself; with the receive before the message or after; with room for all of it, for all but
 * the last byte, and for a piece alone. */
static void gives_pieces(rank_world *world) {
    size_t   sizes[32], count = awkward_sizes(world, sizes);
    uint8_t *out = take(world, 4 << 20), *in = take(world, 4 << 20), *copy = take(world, 4 << 20);
    if (!(world->wire->can.flags & WEFTI_WIRE_GIVES_PIECES)) count = 0;
    for (size_t i = 0; i < count * 16; i++) {
        size_t   bytes = sizes[i / 16];
        bool     whole = i & 1, early = i & 2, alone = i & 4, cut = (i & 8) && bytes;
        int32_t  right = alone ? world->rank : (world->rank + 1) % world->size;
        int32_t  left = alone ? world->rank : (world->rank + world->size - 1) % world->size;
        uint32_t seed = (uint32_t)(1000 * i);
        pieces   got = {.copy = copy, .most = bytes - cut, .ordered = true};
        fill(out, bytes, seed + (uint32_t)world->rank);
        memset(in, 0xee, whole ? bytes + 1 : WEFTI_WIRE_PIECE_BYTES + 1);
        wefti_wire_op recv = wefti_wire_recv(left, TAG(i), in, bytes - cut), send = wefti_wire_send(right, TAG(i), out, bytes);
        recv.flags = WEFTI_WIRE_SILENT | WEFTI_WIRE_PIECES | (whole ? WEFTI_WIRE_WHOLE : 0);
        recv.piece = note_piece;
        recv.piece_context = &got;
        send.flags = WEFTI_WIRE_SILENT;
        if (!early) world_post(world, &recv);
        world_post(world, &send);
        if (early) world_barrier(world);
        if (early) world_post(world, &recv);
        world_finish(world, &recv);
        world_finish(world, &send);
        CHECK(recv.status == (cut ? WEFT_E_MISMATCH : WEFT_OK) && recv.done_bytes == bytes, "%zu bytes: %s", bytes,
              weft_status_name(recv.status));
        CHECK(got.ordered && got.bytes == bytes - cut, "%zu of %zu bytes came in pieces", got.bytes, bytes);
        if (!cut) CHECK(filled(copy, bytes, seed + (uint32_t)left), "wrong pieces of %zu bytes", bytes);
        CHECK(in[whole ? bytes - cut : WEFTI_WIRE_PIECE_BYTES] == 0xee, "wrote past the end, %zu bytes", bytes);
    }
    free(out);
    free(in);
    free(copy);
}

static void receives_from_anyone(rank_world *world) {
    enum { EACH = 20, BYTES = 20000 };
    uint8_t *buffer = take(world, BYTES);
    if (world->rank == 0) {
        int32_t seen[MOST_RANKS] = {0};
        for (int32_t i = 0; i < EACH * (world->size - 1); i++) {
            wefti_wire_op op = wefti_wire_recv(WEFTI_WIRE_ANY_PEER, TAG(1), buffer, BYTES);
            op.flags = WEFTI_WIRE_SILENT;
            world_post(world, &op);
            world_finish(world, &op);
            int32_t peer = op.done_peer;
            CHECK(op.status == WEFT_OK && peer > 0 && peer < world->size, "from %d", (int)peer);
            size_t bytes = seen[peer] % 2 ? BYTES : 16;
            CHECK(op.done_bytes == bytes && filled(buffer, bytes, (uint32_t)(peer * 1000 + seen[peer])),
                  "message %d of rank %d", (int)seen[peer], (int)peer);
            seen[peer]++;
        }
        for (int32_t peer = 1; peer < world->size; peer++) CHECK(seen[peer] == EACH, "%d of %d", (int)seen[peer], EACH);
    } else {
        for (int32_t i = 0; i < EACH; i++) {
            fill(buffer, BYTES, (uint32_t)(world->rank * 1000 + i));
            world_send(world, 0, TAG(1), buffer, i % 2 ? BYTES : 16);
        }
    }
    free(buffer);
}

/* A named receive posted before one for anyone is served first. */
static void serves_named_and_any_in_posted_order(rank_world *world) {
    uint32_t a = 0, b = 0, c = 0;
    if (world->rank == 1) {
        wefti_wire_op named = wefti_wire_recv(0, TAG(1), &a, 4), any = wefti_wire_recv(WEFTI_WIRE_ANY_PEER, TAG(1), &b, 4),
                      again = wefti_wire_recv(0, TAG(1), &c, 4);
        named.flags = any.flags = again.flags = WEFTI_WIRE_SILENT;
        world_post(world, &named);
        world_post(world, &any);
        world_post(world, &again);
        world_barrier(world);
        world_finish(world, &named);
        world_finish(world, &any);
        world_finish(world, &again);
        CHECK(a == 1 && b == 2 && c == 3, "got %u %u %u", a, b, c);
    } else {
        world_barrier(world);
        if (world->rank == 0)
            for (uint32_t i = 1; i <= 3; i++) world_send(world, 1, TAG(1), &i, 4);
    }
}

static void names_a_message_that_is_too_long(rank_world *world) {
    static const size_t sizes[] = {9, 3000, 2 << 20};
    uint8_t            *buffer = take(world, 2 << 20);
    for (size_t s = 0; s < WEFTI_COUNT(sizes); s++)
        for (int early = 0; early < 2; early++) {
            if (world->rank == 0) {
                wefti_wire_op send = wefti_wire_send(1, TAG(1), buffer, sizes[s]);
                send.flags = WEFTI_WIRE_SILENT;
                if (!early) world_barrier(world);
                world_post(world, &send);
                if (early) world_barrier(world);
                world_finish(world, &send);
                CHECK(send.status == WEFT_OK, "the send of %zu ended with %s", sizes[s], weft_status_name(send.status));
            } else if (world->rank == 1) {
                memset(buffer, 0x11, 16);
                wefti_wire_op recv = wefti_wire_recv(0, TAG(1), buffer, 8);
                recv.flags = WEFTI_WIRE_SILENT;
                if (!early) world_post(world, &recv);
                world_barrier(world);
                if (early) world_post(world, &recv);
                world_finish(world, &recv);
                CHECK(recv.status == WEFT_E_MISMATCH && recv.done_bytes == sizes[s] && recv.done_peer == 0,
                      "%zu bytes for 8 ended with %s, %zu", sizes[s], weft_status_name(recv.status), recv.done_bytes);
                CHECK(buffer[8] == 0x11, "wrote past the end of the receive");
            } else {
                world_barrier(world);
            }
        }
    world_barrier(world);
    if (world->rank == 0) world_send(world, 1, TAG(2), "still well", 11);
    if (world->rank == 1) world_recv(world, 0, TAG(2), buffer, 11);
    free(buffer);
}

static void sends_to_itself(rank_world *world) {
    static const size_t sizes[] = {0, 8, 5000, 1 << 20};
    uint8_t            *out = take(world, 1 << 20), *in = take(world, 1 << 20);
    for (size_t s = 0; s < WEFTI_COUNT(sizes); s++)
        for (int late = 0; late < 2; late++) {
            fill(out, sizes[s], (uint32_t)s);
            memset(in, 0, sizes[s]);
            wefti_wire_op send = wefti_wire_send(world->rank, TAG(1), out, sizes[s]);
            wefti_wire_op recv = wefti_wire_recv(world->rank, TAG(1), in, sizes[s]);
            send.flags = recv.flags = WEFTI_WIRE_SILENT;
            world_post(world, late ? &send : &recv);
            world_post(world, late ? &recv : &send);
            world_finish(world, &send);
            world_finish(world, &recv);
            CHECK(send.status == WEFT_OK && recv.status == WEFT_OK && filled(in, sizes[s], (uint32_t)s), "%zu bytes",
                  sizes[s]);
        }
    free(out);
    free(in);
}

/* All to all at once, both ways on every link, more than any buffer of the system holds. */
static void exchanges_with_everyone_at_once(rank_world *world) {
    enum { BYTES = 3 << 20 };
    uint8_t      *out[MOST_RANKS], *in[MOST_RANKS];
    wefti_wire_op sends[MOST_RANKS], recvs[MOST_RANKS];
    for (int32_t peer = 0; peer < world->size; peer++) {
        out[peer] = take(world, BYTES);
        in[peer] = take(world, BYTES);
        fill(out[peer], BYTES, (uint32_t)(world->rank * 10 + peer));
        sends[peer] = wefti_wire_send(peer, TAG(3), out[peer], BYTES);
        recvs[peer] = wefti_wire_recv(peer, TAG(3), in[peer], BYTES);
        sends[peer].flags = recvs[peer].flags = WEFTI_WIRE_SILENT;
    }
    for (int32_t peer = 0; peer < world->size; peer++) world_post(world, &sends[peer]);
    for (int32_t peer = 0; peer < world->size; peer++) world_post(world, &recvs[peer]);
    for (int32_t peer = 0; peer < world->size; peer++) {
        world_finish(world, &sends[peer]);
        world_finish(world, &recvs[peer]);
        CHECK(recvs[peer].status == WEFT_OK && filled(in[peer], BYTES, (uint32_t)(peer * 10 + world->rank)), "from %d",
              (int)peer);
        free(out[peer]);
        free(in[peer]);
    }
}

static const wire_case cases[] = {
    {"carries_every_size", carries_every_size},
    {"keeps_the_order_of_a_tag", keeps_the_order_of_a_tag},
    {"lets_no_tag_wait_for_another", lets_no_tag_wait_for_another},
    {"keeps_early_messages", keeps_early_messages},
    {"keeps_an_early_message_of_every_size", keeps_an_early_message_of_every_size},
    {"gives_pieces", gives_pieces},
    {"receives_from_anyone", receives_from_anyone},
    {"serves_named_and_any_in_posted_order", serves_named_and_any_in_posted_order},
    {"names_a_message_that_is_too_long", names_a_message_that_is_too_long},
    {"sends_to_itself", sends_to_itself},
    {"exchanges_with_everyone_at_once", exchanges_with_everyone_at_once},
};
const wire_case_list message_cases = {cases, WEFTI_COUNT(cases)};
