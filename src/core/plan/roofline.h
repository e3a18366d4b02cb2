/* What a device can do at most, as measured by its own programs: the limits that profiles compare operations with. */
#ifndef WEFTI_PLAN_ROOFLINE_H
#define WEFTI_PLAN_ROOFLINE_H

#include "core/iface/device.h"

typedef struct wefti_roofline {
    double bytes_per_ns;                  /* read and written, by a copy; 0: not measured */
    double flops_per_ns[WEFT_DTYPE_COUNT]; /* by a matrix product in that dtype; 0: not measured */
} wefti_roofline;

/* Measures what is not known yet: bandwidth, and products in `dtype` where that is floating. Takes some milliseconds and up to 300 MB of the
 * device's memory, which it gives back. What cannot be measured stays 0. */
void wefti_roofline_measure(wefti_device *device, weft_dtype dtype, wefti_roofline *roofline);

/* The least time that so many operations and bytes can take, over `ns`; 0 where it is not known. */
static inline double wefti_roofline_share(const wefti_roofline *roofline, weft_dtype dtype, double flops, double bytes, double ns) {
    double rate = roofline->flops_per_ns[dtype];
    double computing = rate > 0 ? flops / rate : 0, moving = roofline->bytes_per_ns > 0 ? bytes / roofline->bytes_per_ns : 0;
    return ns > 0 ? (computing > moving ? computing : moving) / ns : 0;
}

#endif
