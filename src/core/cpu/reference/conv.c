/* Convolutions in two dimensions and their two gradients, straight from the definition: sums in f64, rounded once.
 *
 * y[n, o, p, q] = sum over c, i, j of x[n, g(o) C/groups + c, p*sh + i*dh - top, q*sw + j*dw - left] * w[o, c, i, j],
 * where x outside its plane is 0. The gradients are the same sum over other indices. Threads share output planes. */
#include "core/cpu/reference/reference.h"

typedef struct conv {
    const wefti_cpu_run *run;
    weft_shape           x, w, y; /* of the forward convolution */
    int64_t              stride[2], pad[2], dilation[2], groups, per_group; /* per_group: output channels */
} conv;

static conv conv_of(const wefti_cpu_run *run, weft_shape x, weft_shape w, weft_shape y) {
    const wefti_attrs *attrs = run->call->attrs;
    conv               c = {.run = run, .x = x, .w = w, .y = y};
    for (int i = 0; i < 2; i++) {
        c.stride[i] = attrs->conv.stride[i] > 0 ? attrs->conv.stride[i] : 1;
        c.dilation[i] = attrs->conv.dilation[i] > 0 ? attrs->conv.dilation[i] : 1;
        c.pad[i] = attrs->conv.pad[2 * i];
    }
    c.groups = attrs->conv.groups > 0 ? attrs->conv.groups : 1;
    c.per_group = w.dim[0] / c.groups;
    return c;
}

static int64_t at4(const wefti_operand *operand, int64_t a, int64_t b, int64_t c, int64_t d) {
    return a * operand->stride[0] + b * operand->stride[1] + c * operand->stride[2] + d * operand->stride[3];
}

/* Where output coordinate `p` with kernel coordinate `i` looks along `axis`; false outside the plane. */
static bool looks_at(const conv *c, int axis, int64_t p, int64_t i, int64_t *at_out) {
    *at_out = p * c->stride[axis] + i * c->dilation[axis] - c->pad[axis];
    return *at_out >= 0 && *at_out < c->x.dim[2 + axis];
}

/* The output coordinate that looks at `at` through kernel coordinate `i`; false where there is none. */
static bool is_seen_by(const conv *c, int axis, int64_t at, int64_t i, int64_t *p_out) {
    int64_t scaled = at + c->pad[axis] - i * c->dilation[axis];
    *p_out = scaled / c->stride[axis];
    return scaled >= 0 && scaled % c->stride[axis] == 0 && *p_out < c->y.dim[2 + axis];
}

static double forward_at(const conv *c, int64_t n, int64_t o, int64_t p, int64_t q) {
    const wefti_operand *x = &c->run->call->inputs[0], *w = &c->run->call->inputs[1];
    int64_t              first = o / c->per_group * c->w.dim[1], h, v;
    double               sum = 0;
    for (int64_t k = 0; k < c->w.dim[1]; k++)
        for (int64_t i = 0; i < c->w.dim[2]; i++) {
            if (!looks_at(c, 0, p, i, &h)) continue;
            for (int64_t j = 0; j < c->w.dim[3]; j++)
                if (looks_at(c, 1, q, j, &v))
                    sum += wefti_in(c->run, 0, at4(x, n, first + k, h, v)) * wefti_in(c->run, 1, at4(w, o, k, i, j));
        }
    return sum;
}

static double input_gradient_at(const conv *c, int64_t n, int64_t channel, int64_t h, int64_t v) {
    const wefti_operand *g = &c->run->call->inputs[0], *w = &c->run->call->inputs[1];
    int64_t              group = channel / c->w.dim[1], k = channel % c->w.dim[1], p, q;
    double               sum = 0;
    for (int64_t o = group * c->per_group; o < (group + 1) * c->per_group; o++)
        for (int64_t i = 0; i < c->w.dim[2]; i++) {
            if (!is_seen_by(c, 0, h, i, &p)) continue;
            for (int64_t j = 0; j < c->w.dim[3]; j++)
                if (is_seen_by(c, 1, v, j, &q))
                    sum += wefti_in(c->run, 0, at4(g, n, o, p, q)) * wefti_in(c->run, 1, at4(w, o, k, i, j));
        }
    return sum;
}

static double weight_gradient_at(const conv *c, int64_t o, int64_t k, int64_t i, int64_t j) {
    const wefti_operand *g = &c->run->call->inputs[0], *x = &c->run->call->inputs[1];
    int64_t              channel = o / c->per_group * c->w.dim[1] + k, h, v;
    double               sum = 0;
    for (int64_t n = 0; n < c->y.dim[0]; n++)
        for (int64_t p = 0; p < c->y.dim[2]; p++) {
            if (!looks_at(c, 0, p, i, &h)) continue;
            for (int64_t q = 0; q < c->y.dim[3]; q++)
                if (looks_at(c, 1, q, j, &v))
                    sum += wefti_in(c->run, 0, at4(g, n, o, p, q)) * wefti_in(c->run, 1, at4(x, n, channel, h, v));
        }
    return sum;
}

/* One plane of the output: its last two axes. */
static void plane(const conv *c, int64_t chunk, double (*at)(const conv *, int64_t, int64_t, int64_t, int64_t)) {
    weft_shape shape = c->run->call->outputs[0].shape;
    int64_t    size = shape.dim[2] * shape.dim[3];
    for (int64_t i = 0; i < size; i++)
        wefti_out(c->run, 0, chunk * size + i,
                  at(c, chunk / shape.dim[1], chunk % shape.dim[1], i / shape.dim[3], i % shape.dim[3]));
}

static void forward_plane(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    plane(context, chunk, forward_at);
}
static void input_gradient_plane(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    plane(context, chunk, input_gradient_at);
}
static void weight_gradient_plane(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    plane(context, chunk, weight_gradient_at);
}

static weft_status run_planes(conv *c, wefti_pool_body body) {
    weft_shape shape = c->run->call->outputs[0].shape;
    wefti_cpu_for(c->run, shape.dim[0] * shape.dim[1], body, c);
    return WEFT_OK;
}

static weft_status run_forward(const wefti_cpu_run *run) {
    conv c = conv_of(run, run->call->inputs[0].shape, run->call->inputs[1].shape, run->call->outputs[0].shape);
    return run_planes(&c, forward_plane);
}
static weft_status run_backward_input(const wefti_cpu_run *run) {
    conv c = conv_of(run, run->call->outputs[0].shape, run->call->inputs[1].shape, run->call->inputs[0].shape);
    return run_planes(&c, input_gradient_plane);
}
static weft_status run_backward_weight(const wefti_cpu_run *run) {
    conv c = conv_of(run, run->call->inputs[1].shape, run->call->outputs[0].shape, run->call->inputs[0].shape);
    return run_planes(&c, weight_gradient_plane);
}

const wefti_cpu_kernel wefti_reference_conv2d = {.name = "reference conv2d", .run = run_forward};
const wefti_cpu_kernel wefti_reference_conv2d_backward_input = {.name = "reference conv2d input gradient",
                                                                .run = run_backward_input};
const wefti_cpu_kernel wefti_reference_conv2d_backward_weight = {.name = "reference conv2d weight gradient",
                                                                 .run = run_backward_weight};
