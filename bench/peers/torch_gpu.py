#!/usr/bin/env python3
"""Trains one of the yardstick networks in PyTorch on a GPU and reports how fast, one JSON object a line.

The networks, data, batch and solver are those of Weft's samples (train_images, train_gpt). PyTorch gets what a careful user
would give it: data on the device beforehand, the fused solver, bf16 autocast, flash attention, a padded vocabulary, tensor
cores for f32 products where --tf32 says so, and no look at the loss inside of a window. Step times are of whole windows between two
synchronisations; the figure is the median over windows.
"""
import argparse
import json
import math
import statistics
import sys
import time

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
except ImportError:
    torch = None

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--net", choices=["mlp", "cnn", "gpt", "resnet50"], required=True)
parser.add_argument("--mode", default="compile", choices=["eager", "compile", "graphs"], help="graphs: torch.compile with CUDA graphs")
parser.add_argument("--layers", type=int, default=12)
parser.add_argument("--heads", type=int, default=12)
parser.add_argument("--width", type=int, default=768)
parser.add_argument("--context", type=int, default=1024)
parser.add_argument("--vocabulary", type=int, default=50304)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--precision", default="bf16", choices=["f32", "bf16"])
parser.add_argument("--tf32", action="store_true", help="f32 products by tensor cores")
parser.add_argument("--data", help="file of 16-bit ids, for gpt; random ids without it")
parser.add_argument("--warmup", type=int, default=20)
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--windows", type=int, default=5, help="that the steps are cut into")
parser.add_argument("--lr", type=float, default=6e-4)
parser.add_argument("--side", type=int, default=224, help="pixels of resnet50's images")
parser.add_argument("--cpu", action="store_true", help="on the CPU: tries this script where there is no GPU; no figure of it counts")
args = parser.parse_args()

if not torch or (not args.cpu and not torch.cuda.is_available()):
    print(json.dumps({"bench": "torch-gpu", "case": args.net, "metric": "throughput", "median": "unmeasured"}))
    sys.exit(0)
device = torch.device("cpu" if args.cpu else "cuda")
wait = (lambda: None) if args.cpu else torch.cuda.synchronize
torch.manual_seed(1)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
torch.backends.cudnn.benchmark = True
T, V = args.context, args.vocabulary


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        C = args.width
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, args.heads, C // args.heads).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(V, args.width), nn.Embedding(T, args.width)
        self.blocks = nn.Sequential(*[Block() for _ in range(args.layers)])
        self.norm, self.head = nn.LayerNorm(args.width), nn.Linear(args.width, V, bias=False)
        self.head.weight = self.token.weight
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * args.layers) if last else 0.02)

    def forward(self, tokens):
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class Bottleneck(nn.Module):
    def __init__(self, before, filters, stride):
        super().__init__()
        after = 4 * filters
        self.body = nn.Sequential(
            nn.Conv2d(before, filters, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(inplace=True),
            nn.Conv2d(filters, filters, 3, padding=1, stride=stride, bias=False), nn.BatchNorm2d(filters), nn.ReLU(inplace=True),
            nn.Conv2d(filters, after, 1, bias=False), nn.BatchNorm2d(after))
        self.skip = nn.Identity() if before == after else nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        return F.relu(self.body(x) + self.skip(x))


def resnet50():
    """As samples/train_images.c: of images below 64 pixels the stem keeps the size."""
    large = args.side >= 64
    stem = nn.Conv2d(3, 64, 7, padding=3, stride=2, bias=False) if large else nn.Conv2d(3, 64, 3, padding=1, bias=False)
    parts = [stem, nn.BatchNorm2d(64), nn.ReLU(inplace=True)] + ([nn.MaxPool2d(3, 2, padding=1)] if large else [])
    before = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for i in range(blocks):
            parts.append(Bottleneck(before, 64 << stage, 2 if stage > 0 and i == 0 else 1))
            before = 4 * (64 << stage)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000)).to(memory_format=torch.channels_last)


def network():
    if args.net == "gpt":
        return Gpt()
    if args.net == "resnet50":
        return resnet50()
    if args.net == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
    return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
                         nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10))


def batches():
    """Eight batches in turns (of large images two), all on the device."""
    if args.net == "resnet50":
        return [(torch.randn(args.batch, 3, args.side, args.side, device=device).contiguous(memory_format=torch.channels_last),
                 torch.randint(1000, (args.batch,), device=device)) for _ in range(2)]
    if args.net != "gpt":
        return [(torch.randn(args.batch, 1, 28, 28, device=device), torch.randint(10, (args.batch,), device=device)) for _ in range(8)]
    if args.data:
        import numpy
        ids = torch.from_numpy(numpy.fromfile(args.data, dtype=numpy.uint16).astype(numpy.int64))
    else:
        ids = torch.randint(min(V, 50257), (args.batch * T * 8 + T + 1,))
    made = []
    for _ in range(8):
        starts = torch.randint(len(ids) - T - 1, (args.batch,)).tolist()
        window = torch.stack([ids[start : start + T + 1] for start in starts]).to(device)
        made.append((window[:, :-1].contiguous(), window[:, 1:].contiguous()))
    return made


model = network().to(device)
if args.net == "resnet50":
    solver = torch.optim.SGD(model.parameters(), lr=0.1 * args.batch / 256, momentum=0.9, nesterov=True, fused=True)
else:
    solver = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
data = batches()


def loss_of(inputs, labels):
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.precision == "bf16"):
        logits = model(inputs)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


if args.mode != "eager":
    loss_of = torch.compile(loss_of, mode="reduce-overhead" if args.mode == "graphs" else None)
done = 0


def step():
    global done
    inputs, labels = data[done % len(data)]
    loss = loss_of(inputs, labels)
    loss.backward()
    if args.net == "gpt":
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    solver.step()
    solver.zero_grad(set_to_none=True)
    done += 1
    return loss


first = step().item()
for _ in range(args.warmup - 1):
    loss = step()
wait()
times = []
for _ in range(args.windows):
    start = time.perf_counter()
    for _ in range(max(1, args.steps // args.windows)):
        loss = step()
    wait()
    times.append((time.perf_counter() - start) / max(1, args.steps // args.windows))
per_step = args.batch * (T if args.net == "gpt" else 1)
unit = "tokens/s" if args.net == "gpt" else "samples/s"
case = f"{args.net} {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M batch {args.batch} {args.precision}"
common = {"bench": "torch-gpu", "case": case, "mode": args.mode, "device": "the CPU, at toy size" if args.cpu else torch.cuda.get_device_name(), "version": torch.__version__}
print(json.dumps({**common, "metric": "throughput", "unit": unit, "median": round(per_step / statistics.median(times), 1),
                  "low": round(per_step / max(times), 1), "high": round(per_step / min(times), 1), "runs": args.windows}))
print(json.dumps({**common, "metric": "step", "unit": "ms", "median": round(1e3 * statistics.median(times), 3)}))
print(json.dumps({**common, "metric": "memory", "unit": "MiB", "median": "unmeasured" if args.cpu else round(torch.cuda.max_memory_allocated() / 2**20)}))
print(json.dumps({**common, "metric": "loss", "unit": "nat", "first": round(first, 4), "last": round(loss.item(), 4)}))
