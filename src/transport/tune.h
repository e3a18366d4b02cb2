/* Tuning: what messages and memory cost here, measured or from a file, and which algorithm was the quickest at which size. */
#ifndef WEFTI_TRANSPORT_TUNE_H
#define WEFTI_TRANSPORT_TUNE_H

#include "core/iface/collective.h"

enum { WEFTI_TUNING_RULES = 128 };

/* Takes the algorithm for calls of at least so many bytes, up to the next rule of the kind. */
typedef struct wefti_tuning_rule {
    uint64_t bytes; /* of the call's count */
    int32_t kind;   /* wefti_collective_kind */
    char algorithm[20];
} wefti_tuning_rule;

/* The same on all ranks, bit by bit: rank 0's is handed out. */
typedef struct wefti_tuning {
    char wire[16];
    int32_t ranks, hosts; /* that it was measured on */
    int32_t rule_count;
    double alpha_ns, beta_ns;         /* a message and one of its bytes, between ranks of one host */
    double far_alpha_ns, far_beta_ns; /* the same between hosts; as above where there is but one */
    double gamma_ns;                  /* a byte read or written by one core */
    wefti_tuning_rule rules[WEFTI_TUNING_RULES]; /* for groups of `ranks`; by kind, then by bytes */
} wefti_tuning;

/* One direction between two members of a group. */
typedef struct wefti_link_cost {
    int32_t from, to;
    bool far; /* they run on different hosts */
    double alpha_ns, beta_ns;
} wefti_link_cost;

/* Most links that a measurement lists: each member's to the next few, around the group. */
enum { WEFTI_TUNING_DISTANCES = 3 };

/* Measures messages of 8 bytes and of 256 KiB from each member to the next, the second and the third around the group, the
 * quickest of a few rounds; and the reduction. Over the MPI wire, times MPI's own collectives beside ours as well, and makes rules of
 * what it finds (some tenths of a second). Takes milliseconds; on a slow link as long as 50 of its large messages. Collective
 * over the group of `size` members; rank 0's numbers are handed to all. `links_out` [wefti_tuning_links(size)], may be NULL. */
WEFT_MUST_CHECK weft_status wefti_tuning_measure(wefti_group *group, wefti_tuning *tuning_out, wefti_link_cost *links_out);
int32_t wefti_tuning_links(int32_t size); /* how many there are */

/* Lets a group choose by it; rules count in groups of as many members. Engines other than our own have nothing to choose. Not
 * with operations in flight, and alike on all members. */
void wefti_tuning_apply(wefti_group *group, const wefti_tuning *tuning);

/* Adds a rule behind the others, unless the last one of the kind says the same; the first of a kind holds for all that is smaller, too. */
void wefti_tuning_add_rule(wefti_tuning *tuning, wefti_collective_kind kind, size_t bytes, const char *algorithm);

/* Text, one number or rule a line, and a checksum of it in the last. What is damaged, cut off, or no tuning at all is
 * WEFT_E_CORRUPT, and the message names the file and the line; a file that cannot be opened or read is WEFT_E_IO or what else
 * the system says. */
WEFT_MUST_CHECK weft_status wefti_tuning_read(const char *path, wefti_tuning *tuning_out);
WEFT_MUST_CHECK weft_status wefti_tuning_save(const char *path, const wefti_tuning *tuning);
void wefti_tuning_write(const wefti_tuning *tuning, wefti_text *text);

/* Which of its forms WEFT_TUNING has on this rank, for the ranks to compare: WEFT_E_MISMATCH, on all of them, names the first
 * that differs from rank 0. */
char wefti_tuning_wish(void);
WEFT_MUST_CHECK weft_status wefti_tuning_agree(const char *wishes, int32_t ranks);

/* Does what WEFT_TUNING says for the group of all ranks: nothing (then *tuned_out is false); "measure"; "measure:PATH", which rank
 * 0 also saves there; or the path of a file that rank 0 reads. Collective. A file of another wire or of another number of hosts is
 * WEFT_E_MISMATCH; its errors are the same on all ranks. */
WEFT_MUST_CHECK weft_status wefti_tuning_start(wefti_group *group, wefti_tuning *tuning_out, bool *tuned_out);

#endif
