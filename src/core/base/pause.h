/* What a loop that looks again and again does between two looks: tells the core that it spins, so that the other thread of the core gets more of
 * it and leaving the loop costs less. Nothing where there is no such instruction. Inline: a call would cost more than it. */
#ifndef WEFTI_PAUSE_H
#define WEFTI_PAUSE_H

static inline void wefti_pause_core(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
