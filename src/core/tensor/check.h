/* Whether a call is one that op.h allows. Every device asks this first, so that all refuse the same with the same words. */
#ifndef WEFTI_CHECK_H
#define WEFTI_CHECK_H

#include "core/iface/device.h"

/* Arity, dtypes, shapes and attributes of a call; nothing about memory. The message names the op, the call and its shapes. Pure. */
WEFT_MUST_CHECK weft_status wefti_call_check(const wefti_call *call);
/* Whether devices compute the op at all. */
bool wefti_op_is_computed(weft_op op);

#endif
