/* Long work of the host over its cores, outside of steps and devices: initial values. */
#ifndef WEFTI_SPREAD_H
#define WEFTI_SPREAD_H

#include <stdint.h>

/* Cores that this process may run on; >= 1. */
int32_t wefti_cores(void);
/* Calls body(context, chunk) once for every chunk of [0, chunks), on the calling thread and on up to threads - 1 more that it starts for
 * this call alone (fewer where the system gives none), and returns when all have returned. */
typedef void (*wefti_spread_body)(void *context, int64_t chunk);
void wefti_spread(int64_t chunks, int32_t threads, wefti_spread_body body, void *context);

#endif
