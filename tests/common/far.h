/* A device whose memory the host cannot reach, on the CPU: what a GPU asks of plans and trainers, without a GPU.
 *
 * Its addresses are no addresses of the host's, so whoever follows one crashes. Copies beside the computing happen as late as the contract
 * allows (core/iface/device.h): one out when its ticket has been looked at `delay` times, one in when somebody joins. Everything else
 * it leaves to the device that it is made of. */
#ifndef TESTS_COMMON_FAR_H
#define TESTS_COMMON_FAR_H

#include "core/iface/device.h"

/* Borrows `inside`, a CPU device. Release it through its vtable. */
wefti_device *far_device(wefti_device *inside, int delay);

/* Bytes held now: 0 once all is given back. */
size_t far_device_held(const wefti_device *device);

#endif
