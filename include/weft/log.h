/* Log lines go to a callback of the program, or nowhere: the library prints nothing on its own. */
#ifndef WEFT_LOG_H
#define WEFT_LOG_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum weft_log_level { WEFT_LOG_ERROR, WEFT_LOG_WARNING, WEFT_LOG_INFO, WEFT_LOG_DEBUG } weft_log_level;

/* One line, without a newline; `line` is valid during the call only. May be called from any thread, also from
 * several at once. It must not call back into the library. */
typedef void (*weft_log_function)(void *context, weft_log_level level, const char *line);

/* Sends lines up to `level` to `function`; NULL (the default) drops them. Process-wide. Call it before worlds are
 * created. */
void weft_set_log(weft_log_function function, void *context, weft_log_level level);

#ifdef __cplusplus
}
#endif
#endif
