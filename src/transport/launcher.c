/* What the launcher of an elastic job tells a gathering: WEFT_GONE_FD is a file with a byte for each rank, not 0 once nobody will be started in its
 * place any more, so that nobody waits for it. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/transport_inside.h"

bool wefti_transport_is_gone(void *context, int32_t seat) {
    const transport_inside *lost = context;
    const char             *text = lost->network ? NULL : getenv("WEFT_GONE_FD");
    char                   *end = NULL, gone = 0;
    struct stat             what;
    long                    file = text && *text ? strtol(text, &end, 10) : -1;
    if (file < 0 || file > 1 << 20 || *end || fstat((int)file, &what) != 0 || !S_ISREG(what.st_mode)) return false;
    fcntl((int)file, F_SETFD, FD_CLOEXEC); /* not for this rank's own children */
    return pread((int)file, &gone, 1, seat) == 1 && gone;
}
