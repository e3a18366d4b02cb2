// An application in C++17, outside of the source tree: the same as main.c, by the functions behind C's macros.
#include <cstdint>
#include <cstdio>
#include <cstring>

#include <weft/graph.h>
#include <weft/idx.h>

int main() {
    weft_graph *graph = nullptr;
    if (weft_graph_create(nullptr, &graph) != WEFT_OK) return 1;
    bool good = weft_graph_check(graph) == WEFT_OK && weft_graph_check(nullptr) == WEFT_E_INVALID;
    good = good && std::strlen(weft_error_message()) > 0;
    weft_graph_release(graph);

    weft_idx *idx = nullptr;
    good = good && weft_idx_open("/nonexistent/file.gz", &idx) == WEFT_E_NOT_FOUND && idx == nullptr;
    std::puts(good ? "outside: as expected" : "outside: not as expected");
    return good ? 0 : 1;
}
