#!/usr/bin/env python3
"""Trains one of the yardstick networks in JAX on a GPU and reports how fast, one JSON object a line, as torch_gpu.py does.

The networks, batch and solver are those of Weft's samples (train_images, train_gpt), written in JAX alone. JAX gets what a careful user would
give it: the whole step is one compiled program that takes over its arguments' memory, f32 parameters with products in bf16, cuDNN's
attention, channels last, and data on the device beforehand. Step times are of whole windows between two waits; the figure is the median.
"""
import argparse
import json
import math
import statistics
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--net", choices=["mlp", "gpt", "resnet50"], required=True)
parser.add_argument("--layers", type=int, default=12)
parser.add_argument("--heads", type=int, default=12)
parser.add_argument("--width", type=int, default=768)
parser.add_argument("--context", type=int, default=1024)
parser.add_argument("--vocabulary", type=int, default=50304)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--side", type=int, default=224, help="pixels of resnet50's images")
parser.add_argument("--precision", default="bf16", choices=["f32", "bf16"])
parser.add_argument("--warmup", type=int, default=20)
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--windows", type=int, default=5, help="that the steps are cut into")
parser.add_argument("--lr", type=float, default=6e-4)
parser.add_argument("--cpu", action="store_true", help="on the CPU: tries this script where there is no GPU; no figure of it counts")
args = parser.parse_args()

try:
    import jax
    import jax.numpy as jnp
    if args.cpu:
        jax.config.update("jax_platforms", "cpu")
    device = jax.devices()[0]
    found = args.cpu or device.platform == "gpu"
except (ImportError, RuntimeError):
    found = False
if not found:
    print(json.dumps({"bench": "jax-gpu", "case": args.net, "metric": "throughput", "median": "unmeasured"}))
    sys.exit(0)
half = jnp.bfloat16 if args.precision == "bf16" else jnp.float32
keys = iter(jax.random.split(jax.random.PRNGKey(1), 4096))


def normal(shape, deviation):
    return deviation * jax.random.normal(next(keys), shape, jnp.float32)


# --- networks: parameters as trees, and what they compute ---


def dense(n_in, n_out, deviation=None):
    return {"w": normal((n_in, n_out), deviation or n_in**-0.5), "b": jnp.zeros(n_out)}


def apply_dense(p, x):
    return x @ p["w"].astype(half) + p["b"].astype(half)


def layer_norm(p, x):
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["w"] + p["b"]).astype(x.dtype)


def make_gpt():
    C, last = args.width, 0.02 / math.sqrt(2 * args.layers)
    norm = lambda: {"w": jnp.ones(C), "b": jnp.zeros(C)}
    blocks = [{"norm1": norm(), "qkv": dense(C, 3 * C, 0.02), "out": dense(C, C, last), "norm2": norm(), "up": dense(C, 4 * C, 0.02),
               "down": dense(4 * C, C, last)} for _ in range(args.layers)]
    return {"token": normal((args.vocabulary, C), 0.02), "place": normal((args.context, C), 0.02), "blocks": blocks, "norm": norm()}


def gpt_block(p, x):
    B, T, C = x.shape
    q, k, v = (part.reshape(B, T, args.heads, C // args.heads) for part in jnp.split(apply_dense(p["qkv"], layer_norm(p["norm1"], x)), 3, axis=-1))
    flash = "cudnn" if device.platform == "gpu" and half == jnp.bfloat16 else None
    x = x + apply_dense(p["out"], jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=flash).reshape(B, T, C))
    return x + apply_dense(p["down"], jax.nn.gelu(apply_dense(p["up"], layer_norm(p["norm2"], x)), approximate=True))


def gpt(p, tokens):
    x = (p["token"][tokens] + p["place"][: tokens.shape[1]]).astype(half)
    for block in p["blocks"]:
        x = gpt_block(block, x)
    return layer_norm(p["norm"], x) @ p["token"].astype(half).T


def mlp(p, x):
    for i, layer in enumerate(p):
        x = apply_dense(layer, jax.nn.relu(x) if i else x)
    return x


def conv(p, x, stride=1):
    pad = p.shape[0] // 2
    return jax.lax.conv_general_dilated(x, p.astype(half), (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def batch_norm(p, x):
    wide = x.astype(jnp.float32)
    mean, square = wide.mean((0, 1, 2)), (wide**2).mean((0, 1, 2))
    return ((wide - mean) * jax.lax.rsqrt(square - mean**2 + 1e-5) * p["w"] + p["b"]).astype(x.dtype)


def conv_norm(kernel, n_in, n_out):
    return {"conv": normal((kernel, kernel, n_in, n_out), (kernel * kernel * n_in / 2) ** -0.5), "norm": {"w": jnp.ones(n_out), "b": jnp.zeros(n_out)}}


def apply_conv(p, x, stride=1):
    return batch_norm(p["norm"], conv(p["conv"], x, stride))


STAGES = [(64 << stage, 2 if stage and not i else 1) for stage, blocks in enumerate((3, 4, 6, 3)) for i in range(blocks)]


def make_resnet50():
    blocks, before = [], 64
    for filters, _ in STAGES:
        block = {"a": conv_norm(1, before, filters), "b": conv_norm(3, filters, filters), "c": conv_norm(1, filters, 4 * filters)}
        if before != 4 * filters:
            block["skip"] = conv_norm(1, before, 4 * filters)
        blocks.append(block)
        before = 4 * filters
    return {"stem": conv_norm(7 if args.side >= 64 else 3, 3, 64), "blocks": blocks, "head": dense(before, 1000)}


def resnet50(p, x):
    x = jax.nn.relu(apply_conv(p["stem"], x.astype(half), 2 if args.side >= 64 else 1))
    if args.side >= 64:
        x = jax.lax.reduce_window(x, jnp.array(-jnp.inf, x.dtype), jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for block, (_, stride) in zip(p["blocks"], STAGES):
        h = jax.nn.relu(apply_conv(block["a"], x))
        h = apply_conv(block["c"], jax.nn.relu(apply_conv(block["b"], h, stride)))
        x = jax.nn.relu(h + (apply_conv(block["skip"], x, stride) if "skip" in block else x))
    return apply_dense(p["head"], x.mean((1, 2)))


def make():
    """The network, its parameters, and batches in turns on the device."""
    B, T = args.batch, args.context
    draw = lambda shape, most: jax.random.randint(next(keys), shape, 0, most)
    if args.net == "gpt":
        return gpt, make_gpt(), [(draw((B, T), args.vocabulary), draw((B, T), args.vocabulary)) for _ in range(8)]
    if args.net == "mlp":
        return mlp, [dense(784, 512), dense(512, 256), dense(256, 10)], [(normal((B, 784), 1).astype(half), draw((B,), 10)) for _ in range(8)]
    return resnet50, make_resnet50(), [(normal((B, args.side, args.side, 3), 1), draw((B,), 1000)) for _ in range(2)]


# --- a step ---


def loss_of(parameters, inputs, labels):
    logits = network(parameters, inputs).astype(jnp.float32)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1).mean()


def adamw(p, m, v, g, step):
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    return (1 - args.lr * 0.1) * p - args.lr * (m / (1 - 0.9**step)) / (jnp.sqrt(v / (1 - 0.95**step)) + 1e-8), m, v


def momentum(p, m, v, g, step):
    m = 0.9 * m + g
    return p - 0.1 * args.batch / 256 * (g + 0.9 * m), m, v


def step_of(parameters, first, second, inputs, labels, step):
    loss, gradients = jax.value_and_grad(loss_of)(parameters, inputs, labels)
    if args.net == "gpt":
        norm = jnp.sqrt(sum((g.astype(jnp.float32) ** 2).sum() for g in jax.tree.leaves(gradients)))
        gradients = jax.tree.map(lambda g: g * jnp.minimum(1, 1 / norm), gradients)
    rule = momentum if args.net == "resnet50" else adamw
    moved = [rule(*leaf, step) for leaf in zip(*(jax.tree.leaves(tree) for tree in (parameters, first, second, gradients)))]
    form = jax.tree.structure(parameters)
    return (*(jax.tree.unflatten(form, [leaf[i] for leaf in moved]) for i in range(3)), loss)


network, parameters, data = make()
state = [parameters, jax.tree.map(jnp.zeros_like, parameters), jax.tree.map(jnp.zeros_like, parameters)]
compiled = jax.jit(step_of, donate_argnums=(0, 1, 2))
done = 0


def step():
    global state, done
    inputs, labels = data[done % len(data)]
    done += 1
    *state, loss = compiled(*state, inputs, labels, jnp.float32(done))
    return loss


first = float(step())
for _ in range(args.warmup - 1):
    step()
jax.block_until_ready(state)
times = []
for _ in range(args.windows):
    begin = time.perf_counter()
    for _ in range(max(1, args.steps // args.windows)):
        loss = step()
    jax.block_until_ready(state)
    times.append((time.perf_counter() - begin) / max(1, args.steps // args.windows))
per_step = args.batch * (args.context if args.net == "gpt" else 1)
case = f"{args.net} {sum(p.size for p in jax.tree.leaves(state[0])) / 1e6:.1f}M batch {args.batch} {args.precision}"
common = {"bench": "jax-gpu", "case": case, "mode": "jit", "device": "the CPU, at toy size" if args.cpu else device.device_kind, "version": jax.__version__}
print(json.dumps({**common, "metric": "throughput", "unit": "tokens/s" if args.net == "gpt" else "samples/s",
                  "median": round(per_step / statistics.median(times), 1), "low": round(per_step / max(times), 1),
                  "high": round(per_step / min(times), 1), "runs": args.windows}))
print(json.dumps({**common, "metric": "step", "unit": "ms", "median": round(1e3 * statistics.median(times), 3)}))
memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
print(json.dumps({**common, "metric": "memory", "unit": "MiB", "median": "unmeasured" if args.cpu or not memory else round(memory / 2**20)}))
print(json.dumps({**common, "metric": "loss", "unit": "nat", "first": round(first, 4), "last": round(float(loss), 4)}))
