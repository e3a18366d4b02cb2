// An application in C++17, outside of the source tree: the same as main.c, by the functions behind C's macros.
#include <cstdint>
#include <cstdio>
#include <cstring>

#include <weft/graph.h>
#include <weft/idx.h>

int main() {
    weft_graph *graph = nullptr;
    if (weft_graph_create(nullptr, &graph) != WEFT_OK) return 1;
    const int64_t rows[] = {8, 3}, columns[] = {3, 5};
    weft_tensor *x = weft_input_with(graph, "x", WEFT_F32, weft_shape_of(2, rows), nullptr);
    weft_tensor *w = weft_input_with(graph, "w", WEFT_F32, weft_shape_of(2, columns), nullptr);
    weft_shape shape = weft_tensor_shape(weft_relu(weft_matmul_with(x, w, nullptr)));
    bool good = weft_graph_check(graph) == WEFT_OK && shape.rank == 2 && shape.dim[1] == 5;

    weft_matmul_with(w, x, nullptr); // [3, 5] by [8, 3]
    good = good && weft_graph_check(graph) == WEFT_E_SHAPE && std::strlen(weft_graph_message(graph)) > 0;
    weft_graph_release(graph);

    weft_idx *idx = nullptr;
    good = good && weft_idx_open("/nonexistent/file.gz", &idx) == WEFT_E_NOT_FOUND && idx == nullptr;
    std::puts(good ? "outside: as expected" : "outside: not as expected");
    return good ? 0 : 1;
}
