/* Token files: a descriptor for reading and a mapping for looking. Reads go by the descriptor, because a mapping of a
 * file that somebody shortens kills the process, and a read does not. Cost: address space; reads of 16-bit ids pass
 * through 4 KiB on the stack. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/source.h"
#include "weft/tokens.h"

struct weft_tokens {
    char    *path;
    int      descriptor;
    uint64_t bytes;
    int32_t  id_bytes;
    void    *mapping;
};

weft_status weft_tokens_open(const char *path, int32_t id_bytes, weft_tokens **tokens_out) {
    if (!tokens_out) return wefti_fail(WEFT_E_INVALID, "weft_tokens_open: tokens_out is NULL");
    *tokens_out = NULL;
    if (id_bytes != 1 && id_bytes != 2)
        return wefti_fail(WEFT_E_INVALID, "weft_tokens_open: ids of '%s' have %d bytes; expected 1 or 2",
                          path ? path : "(none)", id_bytes);
    weft_tokens *tokens = NULL;
    weft_status  status;
    WEFTI_TRY(wefti_alloc(sizeof *tokens, "a token file", &tokens));
    tokens->descriptor = -1;
    tokens->id_bytes = id_bytes;
    WEFTI_TRY_GOTO(wefti_open_regular(path, &tokens->descriptor, &tokens->bytes), fail);
    WEFTI_TRY_GOTO(wefti_copy_string(path, &tokens->path), fail);
    if (tokens->bytes % (uint64_t)id_bytes != 0) {
        status = wefti_fail(WEFT_E_CORRUPT, "'%s' has %llu bytes, which is no multiple of the %d bytes of an id", path,
                            (unsigned long long)tokens->bytes, id_bytes);
        goto fail;
    }
    if (tokens->bytes > 0) {
        tokens->mapping = mmap(NULL, tokens->bytes, PROT_READ, MAP_SHARED, tokens->descriptor, 0);
        if (tokens->mapping == MAP_FAILED) {
            tokens->mapping = NULL;
            status = wefti_fail_errno("cannot map the %llu bytes of '%s'", (unsigned long long)tokens->bytes, path);
            goto fail;
        }
    }
    *tokens_out = tokens;
    return WEFT_OK;
fail:
    weft_tokens_release(tokens);
    return status;
}

int64_t weft_tokens_count(const weft_tokens *tokens) { return (int64_t)(tokens->bytes / (uint64_t)tokens->id_bytes); }
int32_t weft_tokens_id_bytes(const weft_tokens *tokens) { return tokens->id_bytes; }
const void *weft_tokens_data(const weft_tokens *tokens) { return tokens->mapping; }

weft_status weft_tokens_read(const weft_tokens *tokens, int64_t first, int64_t count, int32_t *ids_out) {
    if (first < 0 || count < 0 || first > weft_tokens_count(tokens) || count > weft_tokens_count(tokens) - first)
        return wefti_fail(WEFT_E_INVALID, "tokens [%lld, %lld + %lld) are outside of '%s', which has %lld",
                          (long long)first, (long long)first, (long long)count, tokens->path,
                          (long long)weft_tokens_count(tokens));
    union {
        uint8_t  narrow[4096];
        uint16_t wide[2048];
    } ids;
    int64_t most = (int64_t)sizeof ids / tokens->id_bytes;
    for (int64_t done = 0; done < count;) {
        int64_t now = wefti_min_i64(count - done, most);
        WEFTI_TRY(wefti_read_at(tokens->descriptor, tokens->path, (uint64_t)(first + done) * (uint64_t)tokens->id_bytes,
                                &ids, (size_t)now * (size_t)tokens->id_bytes));
        for (int64_t i = 0; i < now; i++) ids_out[done + i] = tokens->id_bytes == 1 ? ids.narrow[i] : ids.wide[i];
        done += now;
    }
    return WEFT_OK;
}

weft_status weft_tokens_alphabet(const weft_tokens *tokens, weft_alphabet *alphabet_out) {
    if (tokens->id_bytes != 1)
        return wefti_fail(WEFT_E_UNSUPPORTED, "'%s' has 16-bit ids; an alphabet is of a text's bytes", tokens->path);
    bool    used[256] = {false};
    uint8_t part[16384];
    for (uint64_t offset = 0; offset < tokens->bytes;) {
        size_t now = tokens->bytes - offset < sizeof part ? (size_t)(tokens->bytes - offset) : sizeof part;
        WEFTI_TRY(wefti_read_at(tokens->descriptor, tokens->path, offset, part, now));
        for (size_t i = 0; i < now; i++) used[part[i]] = true;
        offset += now;
    }
    memset(alphabet_out, 0, sizeof *alphabet_out);
    for (int32_t byte = 0; byte < 256; byte++) {
        alphabet_out->id_of[byte] = -1;
        if (!used[byte]) continue;
        alphabet_out->id_of[byte] = (int16_t)alphabet_out->count;
        alphabet_out->byte_of[alphabet_out->count++] = (uint8_t)byte;
    }
    return WEFT_OK;
}

void weft_tokens_release(weft_tokens *tokens) {
    if (!tokens) return;
    if (tokens->mapping) munmap(tokens->mapping, tokens->bytes);
    if (tokens->descriptor >= 0) close(tokens->descriptor);
    wefti_free_string(tokens->path);
    wefti_free(tokens, sizeof *tokens);
}
