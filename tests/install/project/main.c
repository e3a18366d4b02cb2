/* An application in C, outside of the source tree: makes an object, and meets errors. */
#include <stdio.h>
#include <string.h>

#include <weft/graph.h>
#include <weft/idx.h>

int main(void) {
    weft_graph *graph = NULL;
    if (weft_graph_create(NULL, &graph) != WEFT_OK) return 1;
    int  good = weft_graph_check(graph) == WEFT_OK && weft_graph_check(NULL) == WEFT_E_INVALID;
    good = good && strlen(weft_error_message()) > 0;
    weft_graph_release(graph);

    weft_idx *idx = NULL;
    good = good && weft_idx_open("/nonexistent/file.gz", &idx) == WEFT_E_NOT_FOUND && idx == NULL;
    puts(good ? "outside: as expected" : "outside: not as expected");
    return good ? 0 : 1;
}
