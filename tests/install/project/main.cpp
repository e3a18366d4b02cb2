// An application in C++17, outside of the source tree: the training of main.c, by the functions behind C's macros.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

#include <weft.h>

namespace {

constexpr int rows = 256, batch_rows = 64, epochs = 60;

void must(weft_status status) {
    if (status != WEFT_OK) throw std::runtime_error(weft_error_message());
}

template <typename T, void release(T *)> struct releaser {
    void operator()(T *object) const { release(object); }
};
using world_pointer = std::unique_ptr<weft_world, releaser<weft_world, weft_world_release>>;
using graph_pointer = std::unique_ptr<weft_graph, releaser<weft_graph, weft_graph_release>>;
using loader_pointer = std::unique_ptr<weft_loader, releaser<weft_loader, weft_loader_release>>;
using trainer_pointer = std::unique_ptr<weft_trainer, releaser<weft_trainer, weft_trainer_release>>;

weft_shape shape_of(int64_t first) { return weft_shape_of(1, &first); }
weft_shape shape_of(int64_t first, int64_t second) {
    const int64_t dims[] = {first, second};
    return weft_shape_of(2, dims);
}

graph_pointer make_graph(uint64_t seed) {
    weft_graph_options options{};
    weft_graph *graph = nullptr;
    options.seed = seed;
    must(weft_graph_create(&options, &graph));
    return graph_pointer(graph);
}

weft_tensor *linear(weft_tensor *x, const char *name, int64_t out) {
    weft_linear_options options{};
    options.out = out;
    return weft_linear_with(x, name, &options);
}

struct data {
    float x[rows][2];
    int32_t same[rows];
    data() {
        unsigned state = 1;
        for (int i = 0; i < rows; i++) {
            for (float &value : x[i]) value = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1;
            same[i] = x[i][0] * x[i][1] > 0;
        }
    }
};

loader_pointer make_loader(const weft_world *world, const data &given) {
    weft_batch_field fields[2] = {{"x", WEFT_F32, shape_of(rows, 2), given.x}, {"same", WEFT_I32, shape_of(rows), given.same}};
    weft_loader_options how{};
    weft_loader *loader = nullptr;
    how.batch = batch_rows;
    how.rank = weft_world_rank(world);
    how.ranks = weft_world_size(world);
    how.seed = 1;
    how.epochs = epochs;
    must(weft_loader_open_arrays(fields, 2, &how, &loader));
    return loader_pointer(loader);
}

trainer_pointer make_trainer(weft_world *world, weft_graph *graph) {
    weft_tensor *h = weft_tanh(linear(weft_input_with(graph, "x", WEFT_F32, shape_of(batch_rows, 2), nullptr), "hidden", 16));
    weft_tensor *target = weft_input_with(graph, "same", WEFT_I32, shape_of(batch_rows), nullptr);
    weft_program program{};
    weft_trainer *trainer = nullptr;
    program.loss = weft_cross_entropy_with(linear(h, "head", 2), target, nullptr);
    program.solver.rate = 0.02;
    program.solver = weft_adam_with(program.solver);
    must(weft_trainer_create(world, &program, &trainer));
    return trainer_pointer(trainer);
}

double train(weft_trainer *trainer, weft_loader *loader) {
    weft_batch batch;
    weft_report report;
    weft_status status;
    double loss = 0;
    int left = epochs * (rows / batch_rows);
    while ((status = weft_loader_next(loader, &batch)) == WEFT_OK) {
        must(weft_trainer_step(trainer, &batch, &report));
        if (left-- <= rows / batch_rows) loss += report.loss * batch_rows / rows;
    }
    if (status != WEFT_END) must(status);
    return loss;
}

bool meets_an_error() {
    graph_pointer graph = make_graph(0);
    weft_tensor *x = weft_input_with(graph.get(), "odd", WEFT_F32, shape_of(8, 3), nullptr);
    weft_matmul_with(x, x, nullptr); // [8, 3] by [8, 3]
    return weft_graph_check(graph.get()) == WEFT_E_SHAPE && std::strstr(weft_graph_message(graph.get()), "odd");
}

} // namespace

int main() try {
    weft_world *opened = nullptr;
    must(weft_world_create(nullptr, &opened));
    world_pointer world(opened);
    graph_pointer graph = make_graph(1);
    const data given;
    loader_pointer loader = make_loader(world.get(), given);
    trainer_pointer trainer = make_trainer(world.get(), graph.get());
    const double loss = train(trainer.get(), loader.get());
    if (!meets_an_error()) std::puts("outside: a wrong shape was let pass");
    else if (weft_world_rank(world.get()) == 0) std::printf("outside: %d ranks, loss %.5f\n", static_cast<int>(weft_world_size(world.get())), loss);
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "outside: %s\n", error.what());
    return 1;
}
