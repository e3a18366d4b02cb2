/* An application in C, outside of the source tree: builds an expression, checks its shape, and meets an error. */
#include <stdio.h>
#include <string.h>

#include <weft/graph.h>
#include <weft/idx.h>

int main(void) {
    weft_graph *graph = NULL;
    if (weft_graph_create(NULL, &graph) != WEFT_OK) return 1;
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(8, 3));
    weft_tensor *w = weft_input(graph, "w", WEFT_F32, weft_shape(3, 5));
    weft_shape   shape = weft_tensor_shape(weft_relu(weft_matmul(x, w)));
    int          good = weft_graph_check(graph) == WEFT_OK && shape.rank == 2 && shape.dim[1] == 5;

    weft_matmul(w, x); /* [3, 5] by [8, 3] */
    good = good && weft_graph_check(graph) == WEFT_E_SHAPE && strlen(weft_graph_message(graph)) > 0;
    weft_graph_release(graph);

    weft_idx *idx = NULL;
    good = good && weft_idx_open("/nonexistent/file.gz", &idx) == WEFT_E_NOT_FOUND && idx == NULL;
    puts(good ? "outside: as expected" : "outside: not as expected");
    return good ? 0 : 1;
}
