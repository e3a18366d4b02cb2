/* Drawing plans: what of a plan is drawn, where it stands, and how it looks. */
#ifndef WEFTI_DRAW_H
#define WEFTI_DRAW_H

#include "core/base/base.h"
#include "parallel/mesh.h"
#include "weft/draw.h"

enum { WEFTI_DRAW_RANKS = 64, WEFTI_DRAW_NAME = 48 };

typedef enum wefti_draw_kind { WEFTI_DRAW_OPS, WEFTI_DRAW_START, WEFTI_DRAW_WAIT } wefti_draw_kind;
typedef enum wefti_draw_pass { WEFTI_DRAW_FORWARD, WEFTI_DRAW_BACKWARD, WEFTI_DRAW_UPDATE } wefti_draw_pass;

/* Something that a rank does, in its order. Goes from rank to rank as it is. */
typedef struct wefti_draw_event {
    int32_t  kind, op;      /* wefti_draw_kind; of the operation, weft_op */
    int32_t  pass, micro;   /* wefti_draw_pass; from 1, 0: none */
    int32_t  count;         /* operations of the graph; messages in one */
    int32_t  message;       /* START, WAIT: which of the lane's */
    int32_t  peer;          /* the other rank of a message between two; -1: a collective */
    int32_t  axis;          /* attrs.comm.group: 0 all ranks, else the mesh's axes, a bit each */
    int32_t  sequence;      /* among those of the same members, or between the same two and that way */
    uint64_t members;       /* a bit for each rank */
    double   flops;
    int64_t  bytes;         /* of the tensors that travel */
    char     name[WEFTI_DRAW_NAME];
} wefti_draw_event;

/* A rank. */
typedef struct wefti_draw_head {
    int32_t rank, n_events;
    char    device[16], place[80]; /* "cpu", "data 1, tensor 0" */
    int32_t index[WEFTI_MESH_AXES]; /* the same */
    double  flops;
    int64_t sent_bytes, held_bytes;
} wefti_draw_head;
typedef struct wefti_draw_lane {
    wefti_draw_head   head;
    wefti_draw_event *events; /* [n_events] owned */
    size_t            room;   /* bytes of events */
} wefti_draw_lane;

/* What stands where: pixels. */
typedef struct wefti_draw_box {
    int32_t lane, pass, micro, count;
    double  flops, y, height;
    char    name[WEFTI_DRAW_NAME];
} wefti_draw_box;
typedef struct wefti_draw_arrow {
    int32_t from, to;        /* lanes; -1: a rank that is not drawn, `rank` */
    int32_t rank, count;
    int32_t from_slot, to_slot;
    int64_t bytes;
    double  from_y, to_y;
} wefti_draw_arrow;
typedef struct wefti_draw_bar {
    int32_t  op, count, sequence, axis;
    uint64_t members;
    int64_t  bytes;
    bool     begun[WEFTI_DRAW_RANKS];
    double   y[WEFTI_DRAW_RANKS], until[WEFTI_DRAW_RANKS]; /* by lane: where it stands, where it is waited for */
} wefti_draw_bar;

typedef struct wefti_draw_scene {
    wefti_draw_lane  *lanes;
    int32_t           n_lanes;
    wefti_draw_box   *boxes;
    wefti_draw_arrow *arrows;
    wefti_draw_bar   *bars;
    int32_t           n_boxes, n_arrows, n_bars, boxes_room, arrows_room, bars_room;
    double            top, bottom; /* of what stands in columns */
} wefti_draw_scene;

/* What this rank does; to be freed by wefti_draw_lane_release. */
WEFT_MUST_CHECK weft_status wefti_draw_collect(const weft_plan *plan, wefti_draw_lane *lane_out);
void wefti_draw_lane_release(wefti_draw_lane *lane);
/* Merges events until no lane has more than `most` boxes and bars, where that can be. */
WEFT_MUST_CHECK weft_status wefti_draw_merge(wefti_draw_scene *scene, int32_t most);
/* The same; then finds places. */
WEFT_MUST_CHECK weft_status wefti_draw_lay_out(wefti_draw_scene *scene, int32_t most);
void wefti_draw_scene_release(wefti_draw_scene *scene);
/* SVG of a scene with places. */
void wefti_draw_write(const wefti_draw_scene *scene, const char *title, wefti_text *text);

#endif
