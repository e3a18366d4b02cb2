#!/usr/bin/env python3
"""Trains one of the three yardstick networks in PyTorch on the CPU and reports how fast, one JSON object a line.

The networks, data, batch, solver and schedule are those of Weft's samples (train_images --model mlp|cnn, train_text).
PyTorch is given every advantage that a careful user would take: the whole data set lies decoded in memory (no loader
at all), the solver is the fused one, and the modes to choose from are eager and torch.compile, each also in
channels-last layout for the convolutional network. Time is taken in windows of equal length after a warm-up; the
figure is the median.
"""
import argparse
import gzip
import json
import math
import os
import resource
import statistics
import struct
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--net", choices=["mlp", "cnn", "gpt"], required=True)
parser.add_argument("--mode", default="eager", choices=["eager", "compile", "eager-nhwc", "compile-nhwc"])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--batch", type=int, help="default 64, for gpt 12")
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--windows", type=int, default=7)
parser.add_argument("--window-seconds", type=float, default=1.5)
parser.add_argument("--warmup-steps", type=int, help="default 30, for gpt 3")
parser.add_argument("--images", default="/usr/share/datasets/fashion-mnist", help="folder with the gzip IDX files")
parser.add_argument("--text", default="/usr/share/common-licenses/GPL-3", help="text that gpt learns")
parser.add_argument("--losses", type=int, default=0, help="report the loss of this many first steps")
parser.add_argument("--steps", type=int, default=0, help="length of the learning rate's schedule; 0: constant")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(args.threads)
import torch  # noqa: E402 (the thread count must be set first)
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

torch.set_num_threads(args.threads)
torch.manual_seed(args.seed)
CONTEXT, LAYERS, HEADS, WIDTH = 256, 6, 6, 384


def read_idx(path):
    with gzip.open(path, "rb") as file:
        data = file.read()
    dims = data[3]
    shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
    return torch.frombuffer(bytearray(data[4 + 4 * dims :]), dtype=torch.uint8).reshape(shape)


def image_batches(batch):
    images = read_idx(os.path.join(args.images, "train-images-idx3-ubyte.gz")).float().div_(255).unsqueeze(1)
    images.sub_(0.2860).div_(0.3530)
    labels = read_idx(os.path.join(args.images, "train-labels-idx1-ubyte.gz")).long()
    while True:
        order = torch.randperm(len(images))
        for start in range(0, len(images) - batch + 1, batch):
            pick = order[start : start + batch]
            yield images[pick], labels[pick]


def text_batches(batch):
    with open(args.text, "rb") as file:
        raw = file.read()
    letters = sorted(set(raw))
    code = {letter: index for index, letter in enumerate(letters)}
    tokens = torch.tensor([code[letter] for letter in raw])
    while True:
        starts = torch.randint(len(tokens) - CONTEXT - 1, (batch,)).tolist()
        window = torch.stack([tokens[start : start + CONTEXT + 1] for start in starts])
        yield window[:, :-1].contiguous(), window[:, 1:].contiguous()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, HEADS, C // HEADS).transpose(1, 2)
                   for part in self.qkv(self.norm1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, letters):
        super().__init__()
        self.token, self.place = nn.Embedding(letters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, letters, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if last else 0.02)

    def forward(self, tokens):
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def build(first_batch):
    if args.net == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(),
                             nn.Linear(256, 10))
    if args.net == "cnn":
        return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                             nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                             nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10))
    with open(args.text, "rb") as file:
        return Gpt(len(set(file.read())))


def flops_per_sample():
    """Multiply-adds of the matrix products, forward and backward, times two. No input gradient for the first layer."""
    if args.net == "mlp":
        return 2 * (2 * 784 * 512 + 3 * (512 * 256 + 256 * 10))
    if args.net == "cnn":
        return 2 * (2 * 784 * 9 * 32 + 3 * (196 * 9 * 32 * 64 + 3136 * 128 + 128 * 10))
    attention = CONTEXT * WIDTH  # two products of T x T, of which causality needs half
    return 2 * 3 * (LAYERS * (12 * WIDTH * WIDTH + attention) + WIDTH * model.head.out_features)


def matmul_peak():
    """The machine's f32 rate in FLOP/s as PyTorch's own GEMM reaches it, on the same threads."""
    n = 1536
    a, b = torch.randn(n, n), torch.randn(n, n)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


batch = args.batch or (12 if args.net == "gpt" else 64)
warmup = args.warmup_steps or (3 if args.net == "gpt" else 30)
batches = text_batches(batch) if args.net == "gpt" else image_batches(batch)
model = build(None)
if args.mode.endswith("nhwc"):
    model = model.to(memory_format=torch.channels_last)
if args.net == "gpt":
    solver = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
else:
    solver = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)


def loss_of(inputs, labels):
    logits = model(inputs)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


loss_function = torch.compile(loss_of) if args.mode.startswith("compile") else loss_of


def rate_of(step_number):
    """Warm-up over a twentieth for gpt, then a cosine down to a share of the rate."""
    warmup, floor = (args.steps // 20, 0.1) if args.net == "gpt" else (0, 0.02)
    if step_number < warmup:
        return args.lr * (step_number + 1) / warmup
    share = min(1.0, (step_number - warmup) / max(1, args.steps - warmup))
    return args.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))


steps_done = 0


def step():
    global steps_done
    inputs, labels = next(batches)
    if args.mode.endswith("nhwc"):
        inputs = inputs.to(memory_format=torch.channels_last)
    solver.zero_grad(set_to_none=True)
    loss = loss_function(inputs, labels)
    loss.backward()
    if args.net == "gpt":
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if args.steps:
        solver.param_groups[0]["lr"] = rate_of(steps_done)
    solver.step()
    steps_done += 1
    return loss.item()


losses = [step() for _ in range(max(warmup, args.losses))]
rates = []
for _ in range(args.windows):
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < args.window_seconds:
        step()
        steps += 1
    rates.append(steps * batch / (time.perf_counter() - start))

per_sample = CONTEXT if args.net == "gpt" else 1
unit = "tokens/s" if args.net == "gpt" else "samples/s"
peak = matmul_peak()
limit = peak / flops_per_sample()  # both per image or per token
anonymous = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
common = {"bench": "torch-train", "case": f"{args.net} batch {batch} threads {args.threads} {args.mode}",
          "net": args.net, "mode": args.mode, "threads": args.threads, "version": torch.__version__}
print(json.dumps({**common, "metric": "throughput", "unit": unit,
                  "median": round(statistics.median(rates) * per_sample, 1), "low": round(min(rates) * per_sample, 1),
                  "high": round(max(rates) * per_sample, 1), "runs": args.windows, "limit": round(limit, 1)}))
print(json.dumps({**common, "metric": "memory", "unit": "MiB", "runs": 1, "anonymous": round(anonymous / 1024, 1),
                  "median": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}))
if args.losses:
    print(json.dumps({**common, "metric": "losses", "unit": "nat", "losses": [round(x, 5) for x in losses]}))
sys.stdout.flush()
