/* The application's own operation as graph and devices see it. CUSTOM(x...) gives the forward outputs;
 * CUSTOM_BACKWARD(x..., y..., gy...) gives one gradient per input (floating inputs only are meaningful). */
#ifndef WEFTI_CUSTOM_H
#define WEFTI_CUSTOM_H

#include "core/iface/op.h"
#include "weft/custom.h"

typedef struct wefti_custom {
    weft_custom_op op;   /* op.name points at `name` */
    char          *name; /* owned by the graph that registered it */
} wefti_custom;

#endif
