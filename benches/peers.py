#!/usr/bin/env python3
"""What else could score a pair on this GPU: PyTorch on the workload that `tuco bench` timed, in the same run. Prints Markdown.

    python benches/peers.py ceilings > ceilings.json
    tuco bench --shape llama-3-8b --peak-tflops … --copy-rate … -o bench.json
    python benches/peers.py kernels bench.json
    python benches/peers.py run bench.json

ceilings: a product of 8192³ in bf16, alone and in a row; a copy of 1 GiB, bytes read and written counted.
kernels: products and attention alone, as libraries do them: the best in a row of cuBLAS as torch calls it and cuBLASLt, and of
  SDPA's backends flash, cuDNN and memory-efficient (this one with keys and values repeated for the heads that share them).
run: peers, each in a process of its own, all with random weights and without an lm_head:
  packed     two full passes over packed tokens (varlen attention), compiled
  trimmed    tuco's algorithm in PyTorch: packed, of the pre-trained model the keys and one row a prompt, compiled
  hooks      two models of `transformers`, SDPA, padded batches of like lengths, a hook on each layer (transformers_peer.py)
  compiled   the same, layers under torch.compile
  one-pass   one model of `packed`
  each with that library for products which is faster in one run
Needs torch; `hooks` and `compiled` need transformers. Median of --repeat runs (3 where one takes more than a second), least and
most in brackets, after three to warm up.
"""

import argparse
import contextlib
import functools
import inspect
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
import warnings

# Else torch tells amid a table that the choice of a library for products is experimental. It reads this at its start.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

PEERS = ["packed", "trimmed", "hooks", "compiled", "one-pass"]
BACKENDS = {"flash": "FLASH_ATTENTION", "cuDNN": "CUDNN_ATTENTION", "memory-efficient": "EFFICIENT_ATTENTION"}
OWN = "torch's own choice"
WARM_UPS, FEWEST = 3, 3


class Clock:
    """Times work on a device: lists of seconds."""

    def __init__(self, device, repeat):
        self.device, self.repeat = device, repeat

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def once(self, work):
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def repetitions(self, work):
        """Of work that is warm."""
        count, seconds = self.repeat, [self.once(work)]
        if seconds[0] > 1:
            count = min(count, FEWEST)
        return seconds + [self.once(work) for _ in range(count - 1)]

    def __call__(self, work):
        for _ in range(WARM_UPS):
            self.once(work)
        return self.repetitions(work)

    def in_a_row(self, work, seconds=0.4):
        """The time of one of many that follow each other, as kernels of a whole pass do: then the power that a GPU may take binds.
        Between the parts that are timed, of 40 ms or so, the GPU waits for some microseconds."""
        count = max(1, round(seconds / self.repeat / statistics.median(self(work))))

        def part():
            for _ in range(count):
                work()

        warm = time.perf_counter() + seconds
        while time.perf_counter() < warm:
            self.once(part)
        return [taken / count for taken in self.repetitions(part)]


@contextlib.contextmanager
def products_by(library):
    """Products by a library; None: by the one that torch takes."""
    before = torch.backends.cuda.preferred_blas_library() if library else None
    try:
        if library:
            torch.backends.cuda.preferred_blas_library(library)
        yield
    finally:
        if library:
            torch.backends.cuda.preferred_blas_library(before)


def libraries(device):
    """Names of the libraries that products are tried with, and how torch calls them."""
    return {OWN: None} | ({"cuBLASLt": "cublaslt"} if device.type == "cuda" else {})


def range_of(amount, seconds, digits=1):
    """Amounts a second: median, least and most."""
    rates = [amount / taken for taken in (statistics.median(seconds), max(seconds), min(seconds))]
    return "{} ({} to {})".format(*(f"{rate:.{digits}f}" for rate in rates))


def ceilings(clock, device, size=8192, copied=1 << 30):
    """What the device reaches at most; with all rates, not the median alone, under "range"."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(copied, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    product, operations, moved = lambda: a @ b.T, 2 * size**3 / 1e12, 2 * copied / 1e9
    measured = {
        "peak_tflops": (operations, clock(product)),
        "peak_tflops_in_a_row": (operations, clock.in_a_row(product)),
        "copy_rate": (moved, clock(lambda: target.copy_(source))),
    }
    medians = {name: amount / statistics.median(seconds) for name, (amount, seconds) in measured.items()}
    return medians | {"range": {name: [n / max(seconds), n / min(seconds)] for name, (n, seconds) in measured.items()}}


def causal_varlen(group):
    """Causal attention of packed rows whose key heads are shared by `group` query heads each, as this version of torch asks
    for it. Looks at the signature here, outside of what is compiled."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    # Up to 2.10, and after.
    asked = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    repeats = 1 if "enable_gqa" in known else group
    if "enable_gqa" in known:
        asked["enable_gqa"] = True

    def attend(q, k, v, packing):
        if repeats > 1:
            k, v = (part.repeat_interleave(repeats, dim=1) for part in (k, v))
        return varlen_attn(q, k, v, packing.starts, packing.starts, packing.longest, packing.longest, **asked)

    return attend


class Packing:
    """Prompts side by side: where each begins, and for the rows of padded prompts where they lie."""

    def __init__(self, lengths, device):
        self.lengths = lengths
        self.longest = max(lengths)
        self.starts = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
        self.last = (self.starts[1:] - 1).long()
        self.positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
        at = torch.arange(self.longest, device=device)
        self.inside = at < torch.tensor(lengths, device=device)[:, None]
        self.padded = torch.minimum(self.starts[:-1, None].long() + at, self.last[:, None])


class Model:
    """The layers of one model with random weights in bf16, on packed rows [tokens, hidden_size]."""

    def __init__(self, config, device, seed):
        generator = torch.Generator(device).manual_seed(seed)
        d, self.h, self.k = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
        self.dim = config.get("head_dim") or d // self.h
        self.eps, f = config.get("rms_norm_eps", 1e-6), config["intermediate_size"]
        self.varlen = causal_varlen(self.h // self.k) if device.type == "cuda" else None
        self.activation = F.silu if config["model_type"] != "gemma" else lambda x: F.gelu(x, approximate="tanh")

        def weight(rows, cols):
            values = torch.empty(rows, cols, device=device, dtype=torch.bfloat16)
            return values.normal_(0, cols**-0.5, generator=generator)

        def norm():
            return torch.ones(d, device=device, dtype=torch.bfloat16)

        self.layers = [
            {
                "norm": norm(),
                "qkv": weight((self.h + 2 * self.k) * self.dim, d),
                "o": weight(d, self.h * self.dim),
                "mlp_norm": norm(),
                "gate_up": weight(2 * f, d),
                "down": weight(d, f),
            }
            for _ in range(config["num_hidden_layers"])
        ]
        theta = config.get("rope_theta", 10000.0)
        angles = torch.outer(
            torch.arange(config.get("max_position_embeddings", 2048), device=device).float(),
            theta ** (-torch.arange(0, self.dim, 2, device=device).float() / self.dim),
        )
        self.cos, self.sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)

    def norm(self, x, weight):
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def rotate(self, x, positions):
        cos, sin = (table[positions][:, None] for table in (self.cos, self.sin))
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def mlp(self, x, w):
        gate, up = (self.norm(x, w["mlp_norm"]) @ w["gate_up"].T).chunk(2, dim=-1)
        return x + (self.activation(gate) * up) @ w["down"].T

    def attend(self, q, k, v, packing):
        if self.varlen:
            return self.varlen(q, k, v, packing)
        parts = zip(*(part.split(packing.lengths) for part in (q, k, v)), strict=True)
        one = [
            F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in part), is_causal=True, enable_gqa=True)
            for part in parts
        ]
        return torch.cat([out[0].transpose(0, 1) for out in one])

    def layer(self, x, w, packing):
        """The layer's output, and its normed rows."""
        normed = self.norm(x, w["norm"])
        q, k, v = (normed @ w["qkv"].T).view(len(x), -1, self.dim).split([self.h, self.k, self.k], dim=1)
        q, k = (self.rotate(part, packing.positions) for part in (q, k))
        x = x + self.attend(q, k, v, packing).flatten(1) @ w["o"].T
        return self.mlp(x, w), normed

    def last_rows(self, x, w, normed, packing):
        """The layer's output for the last token of each prompt: keys of all tokens, values of none."""
        width = self.h * self.dim
        query, key, value = w["qkv"].split([width, self.k * self.dim, self.k * self.dim])
        last = normed[packing.last]
        k = self.rotate((normed @ key.T).view(len(normed), self.k, self.dim), packing.positions)
        q = self.rotate((last @ query.T).view(len(last), self.h, self.dim), packing.positions[packing.last])
        q = q.view(len(last), self.k, -1, self.dim)
        scores = torch.einsum("bkgd,btkd->bkgt", q, k[packing.padded]).float() * self.dim**-0.5
        scores = scores.masked_fill(~packing.inside[:, None, None], -torch.inf).softmax(-1).to(x.dtype)
        means = torch.einsum("bkgt,btd->bkgd", scores, normed[packing.padded])
        heads = torch.einsum("bkgd,kvd->bkgv", means, value.view(self.k, self.dim, -1)).reshape(len(last), width)
        return self.mlp(x[packing.last] + heads @ w["o"].T, w)


def compiled(function, device):
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function


def packed_peer(name, config, lengths, device):
    """Work over packed tokens."""
    packing = Packing(lengths, device)
    pt, ft = Model(config, device, 1), Model(config, device, 2)
    embedded = torch.randn(sum(lengths), config["hidden_size"], device=device, dtype=torch.bfloat16)

    def two_passes(x, pt_w, ft_w):
        (base, _), (tuned, _) = pt.layer(x, pt_w, packing), ft.layer(x, ft_w, packing)
        rows = (part[packing.last].float() for part in (x, base, tuned))
        return tuned, *rows

    def trimmed(x, pt_w, ft_w):
        tuned, normed = ft.layer(x, ft_w, packing)
        if pt_w["norm"] is not ft_w["norm"]:
            normed = pt.norm(x, pt_w["norm"])
        base = pt.last_rows(x, pt_w, normed, packing)
        return tuned, x[packing.last].float(), base.float(), tuned[packing.last].float()

    def one_pass(x, _, ft_w):
        return ft.layer(x, ft_w, packing)[0], None, None, None

    def over_layers(step):
        step = compiled(step, device)

        def work():
            with torch.inference_mode():
                x, ptc, ftc = embedded, 0, 0
                for weights in zip(pt.layers, ft.layers, strict=True):
                    x, row, base, tuned = step(x, *weights)
                    if row is not None:
                        ptc, ftc = ptc + (base - row), ftc + (tuned - base)
                return x, ptc, ftc

        return work

    return over_layers({"packed": two_passes, "trimmed": trimmed, "one-pass": one_pass}[name])


def hook_peer(config, lengths, device, budget, compiles):
    """Work of models of `transformers`."""
    from transformers import AutoConfig, AutoModel
    from transformers_peer import Contributions

    kind, vocabulary = config.pop("model_type"), min(config["vocab_size"], 4096)
    config = AutoConfig.for_model(kind, **config | {"dtype": torch.bfloat16, "use_cache": False})
    with torch.device(device):
        pair = [AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16) for _ in range(2)]
    base, tuned = (model.eval() for model in pair)
    ordered, batches = sorted(lengths, reverse=True), []
    while ordered:
        count = max(1, budget // ordered[0])
        batches.append(ordered[:count])
        ordered = ordered[count:]
    contributions = Contributions(base, tuned)

    def work():
        with torch.inference_mode():
            for batch in batches:
                ids = torch.randint(0, vocabulary, (len(batch), batch[0]), device=device)
                last = torch.tensor(batch, device=device) - 1
                mask = (torch.arange(batch[0], device=device) <= last[:, None]).long()
                contributions.start_batch(last)
                tuned(input_ids=ids, attention_mask=None if min(batch) == batch[0] else mask)
                contributions.norms()

    if compiles:
        for model in pair:
            for layer in model.layers:
                layer.compile()
    return work


def workload(bench, given, tokens):
    """The config of a bench's layers, and the lengths of prompts: the bench's, or those that are given, in turn."""
    given, tokens, lengths = given or bench["lengths"], tokens or bench["tokens"], []
    while sum(lengths) < tokens:
        lengths.append(given[len(lengths) % len(given)])
    return bench["config"] | {"num_hidden_layers": bench["layers"]}, lengths


def row(*cells):
    print("|", " | ".join(cells), "|", flush=True)


def first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0][:120].replace("|", "/")


def best_of(clock, ways):
    """The name of the way that is fastest in a row, its seconds alone and in a row, and by the names of the others their seconds in
    a row, or why they do not run. Each way is a context and what makes the work."""
    found, failed = {}, {}
    for name, (context, prepare) in ways.items():
        try:
            # Why a backend is not for this device is said by warnings before the error.
            with context, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work = prepare()
                found[name] = clock(work), clock.in_a_row(work)
        except Exception as error:  # noqa: BLE001  (one that does not run is told, the others go on)
            failed[name] = first_line(error)
    if not found:
        return None, None, None, failed
    best = min(found, key=lambda name: statistics.median(found[name][1]))
    others = {name: in_a_row for name, (_, in_a_row) in found.items() if name != best}
    return best, *found[best], others | failed


def kernels(clock, config, lengths, device):
    """A row for each of a layer's products and for its attention, as libraries do them. Whether all ran."""
    d, f, h = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    k, tokens, longest = config["num_key_value_heads"], sum(lengths), max(lengths)
    dim = config.get("head_dim") or d // h

    def random(*shape):
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    def product(rows, cols):
        x, w = random(tokens, cols), random(rows, cols)
        ways = {name: (products_by(library), lambda: lambda: x @ w.T) for name, library in libraries(device).items()}
        return 2.0 * tokens * rows * cols, ways

    def attention():
        count = max(tokens // longest, 1)
        q, kv = random(count, h, longest, dim), random(count, k, longest, dim)

        def attend(name):
            # The memory-efficient backend has no heads that share keys.
            keys = kv.repeat_interleave(h // k, dim=1) if name == "memory-efficient" else kv
            shared = keys.shape[1] != h
            return functools.partial(F.scaled_dot_product_attention, q, keys, keys, is_causal=True, enable_gqa=shared)

        ways = {
            name: (sdpa_kernel(getattr(SDPBackend, backend)), functools.partial(attend, name))
            for name, backend in BACKENDS.items()
        }
        return 2.0 * count * h * dim * longest * (longest + 1), ways

    shapes = {"q": (h * dim, d), "k": (k * dim, d), "o": (d, h * dim), "gate, up": (2 * f, d), "down": (d, f)}
    found = {f"product {name} {[*shape]}": functools.partial(product, *shape) for name, shape in shapes.items()}
    row("library's kernel", "best in a row", "ms", "TFLOP/s", "TFLOP/s in a row", "others, TFLOP/s in a row")
    row("---", "---", "---:", "---:", "---:", "---")
    all_ran = True
    for name, prepare in (found | {f"SDPA, {longest} tokens": attention}).items():
        try:
            operations, ways = prepare()
        except Exception as error:  # noqa: BLE001  (as above)
            row(name, f"does not run: {first_line(error)}", "", "", "", "")
            all_ran = False
            continue
        best, alone, in_a_row, others = best_of(clock, ways)
        told = [f"{other}: {what if isinstance(what, str) else range_of(operations / 1e12, what)}" for other, what in others.items()]
        if best is None:
            row(name, "does not run", "", "", "", "; ".join(told))
            all_ran = False
            continue
        rates = (range_of(operations / 1e12, seconds) for seconds in (alone, in_a_row))
        row(name, best, f"{statistics.median(alone) * 1e3:.3f}", *rates, "; ".join(told))
    return all_ran


def peer(name, tuco, clock, config, lengths, device, budget):
    """The row of one peer; ends the process with 1 if it does not run."""
    try:
        if name in ("hooks", "compiled"):
            work = hook_peer(config, lengths, device, budget, name == "compiled")
        else:
            work = packed_peer(name, config, lengths, device)
        seconds, library = timed(clock, work, device)
        rate = sum(lengths) / statistics.median(seconds)
    except Exception as error:  # noqa: BLE001  (as above)
        row(name, f"does not run: {first_line(error)}", "", "")
        sys.exit(1)
    row(name, range_of(sum(lengths), seconds, 0), f"{tuco / rate:.2f}", library)


def timed(clock, work, device):
    """The times of work with that library for products which is faster in one run, and which that is. These runs are its warm-ups, as
    one takes seconds."""
    tried, failed, names = {}, "", libraries(device)
    # The first run compiles too; the last one of a library counts.
    for name in [OWN] * (WARM_UPS + 1 - len(names)) + [*names][1:]:
        try:
            with products_by(names[name]):
                tried[name] = clock.once(work)
        except Exception as error:  # noqa: BLE001  (as above)
            if name == OWN:
                raise
            failed = f"; {name} does not run: {first_line(error)}"
    best = min(tried, key=tried.get)
    with products_by(names[best]):
        return clock.repetitions(work), best + failed


def run(names, limit, bench, *arguments):
    """A row for each peer. What one leaves in memory, breaks or does not finish does not touch the others. Whether all ran."""
    score = next(timing for timing in bench["timings"] if timing["name"] == "score")
    tuco = score["tokens_per_second"]
    row("peer", "tokens/s", "tuco / peer", "products")
    row("---", "---:", "---:", "---")
    row(f"tuco score ({bench['device']})", range_of(bench["tokens"], score["seconds"], 0), "", "")
    all_ran = True
    for name in names:
        process = multiprocessing.get_context("spawn").Process(target=peer, args=(name, tuco, *arguments), daemon=True)
        process.start()
        process.join(limit)
        if process.is_alive():
            row(name, f"stopped after {limit} s", "", "")
        elif process.exitcode not in (0, 1):
            row(name, f"does not run: exit code {process.exitcode}", "", "")
        all_ran &= process.exitcode == 0
        process.kill()
        process.join()
    return all_ran


def names_of_peers(text):
    found = text.split(",")
    if unknown := set(found) - {*PEERS}:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {','.join(PEERS)}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ceilings", "kernels", "run"])
    parser.add_argument("bench", nargs="?", type=pathlib.Path, help="what tuco bench --output wrote")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeat", type=int, default=10, help="default: 10; at most 3 of what takes more than a second")
    parser.add_argument("--tokens", type=int, help="another number of tokens than the bench's")
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], help="other lengths than the bench's")
    parser.add_argument("--peers", type=names_of_peers, default=PEERS, help=f"default: {','.join(PEERS)}")
    parser.add_argument("--limit", type=int, default=90, help="seconds that a peer may take, with all that it prepares")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="padded tokens in a batch of transformers")
    options = parser.parse_args()
    device = torch.device(options.device)
    clock = Clock(device, options.repeat)
    if options.what == "ceilings":
        small = {} if device.type == "cuda" else {"size": 1024, "copied": 1 << 26}
        print(json.dumps(ceilings(clock, device, **small)))
        return
    if options.bench is None:
        parser.error(f"{options.what} needs the file that tuco bench --output wrote")
    bench = json.loads(options.bench.read_text())
    config, lengths = workload(bench, options.lengths, options.tokens)
    work = f"{bench['shape']}, {bench['layers']} layers, {sum(lengths)} tokens in {len(lengths)} prompts"
    print(f"{work}; torch {torch.__version__}\n", flush=True)
    if options.what == "kernels":
        all_ran = kernels(clock, config, lengths, device)
    else:
        all_ran = run(options.peers, options.limit, bench, clock, config, lengths, device, options.batch_tokens)
    sys.exit(not all_ran)


if __name__ == "__main__":
    main()
