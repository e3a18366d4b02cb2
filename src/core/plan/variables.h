/* The set of variables from inside: variables.c fills and names it, variables_shared.c keeps what ranks update in parts. */
#ifndef WEFTI_PLAN_VARIABLES_H
#define WEFTI_PLAN_VARIABLES_H

#include <stdatomic.h>

#include "core/plan/object.h"
#include "core/plan/window.h"

typedef struct wefti_variable {
    char              *name;
    weft_variable_kind kind;
    weft_dtype         dtype;
    weft_shape         shape;    /* global … */
    wefti_window_of    window;   /* … of which this rank has a part … */
    int64_t            bytes;    /* … of so many bytes */
    wefti_leaf         leaf;
    void              *memory;
    bool               divided;  /* a solver state of which each rank keeps its own part up to date */
    uint64_t           whole_at; /* divided: the count of divided runs at which all of it was right here */
} wefti_variable;

typedef struct wefti_variable_block {
    struct wefti_variable_block *next;
    void                        *memory;
    size_t                       size_bytes;
    wefti_wire_region           *region; /* that the memory is; NULL: the device's */
} wefti_variable_block;

/* Behind the first block's variables: what ranks tell each other of them. */
typedef struct wefti_variable_note {
    _Atomic uint64_t overwritten_at; /* the count of divided runs when its owner last wrote over a divided state; 0: never */
    _Atomic int32_t  left;           /* peers that look here no more */
    int32_t          peers;
} wefti_variable_note;

struct weft_variables {
    atomic_int            references;
    wefti_device         *device;
    wefti_wire           *wire;  /* that blocks are exported by; NULL: none */
    int32_t               rank, ranks;
    wefti_variable       *list;
    int32_t               count, capacity;
    int32_t              *table; /* indices by hash of the name, -1 free; at least twice as large as the list */
    int32_t               table_size;
    wefti_variable_block *blocks;
    int64_t               bytes;

    char   **peers;   /* [ranks] where each rank's first block begins here; NULL: the set is not shared */
    int32_t  shared;  /* variables in it */
    size_t   shared_bytes; /* of it, the note not counted */
    uint64_t runs;    /* that updated in parts */
};

/* The world's wire where its ranks reach each other's memory by plain loads and stores, and the device computes there; else NULL. */
wefti_wire *wefti_mapping_wire(const weft_world *world);
/* Bytes that a variable takes in its block: exported ones have room for equal parts of whole cache lines for all ranks. */
static inline size_t wefti_variable_room(const wefti_wire *wire, int32_t ranks, size_t bytes) {
    size_t parts = wire ? (size_t)ranks : 1;
    return parts * wefti_align_up(bytes / parts + (bytes % parts != 0), WEFTI_ALIGNMENT);
}
WEFT_MUST_CHECK weft_status wefti_variables_export(weft_variables *v, size_t size_bytes, wefti_variable_block *block);
/* Gives up an exported block, which stays whole for peers as long as they look at it. */
void wefti_variables_withdraw(weft_variables *v, wefti_variable_block *block);
/* Frees what share made. */
void wefti_variables_part(weft_variables *v);
/* Says that all of the variable is about to be written here. */
void wefti_variables_overwrite(weft_variables *v, int32_t index);

#endif
