#!/usr/bin/env python3
"""What else could score a pair on this GPU: PyTorch on the workload that `tuco bench` timed, in the same run. Prints Markdown.

    python benches/peers.py ceilings > ceilings.json
    tuco bench --shape llama-3-8b --peak-tflops … --copy-rate … -o bench.json
    python benches/peers.py run bench.json

Ceilings: a product of 8192³ in bf16, a copy of 2 GiB (bytes read and written). Peers, all with random weights and without an lm_head:
  hooks      two models of `transformers`, SDPA, padded batches of like lengths, a hook on each layer (transformers_peer.py)
  compiled   the same, layers under torch.compile
  packed     two full passes over packed tokens (varlen attention), compiled
  trimmed    tuco's algorithm in PyTorch: packed, of the pre-trained model the keys and one row a prompt, compiled
  one pass   one model of `packed`
Then products and attention alone, as libraries do them, beside tuco's kernels if the bench was made with --by-kernel.
Needs torch; `hooks` and `compiled` need transformers. Median of --repeat runs after two to warm up.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))


class Clock:
    """Times work on a device."""

    def __init__(self, device, repeat):
        self.device, self.repeat = device, repeat

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def __call__(self, work):
        seconds = []
        for repetition in range(self.repeat + 2):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            if repetition >= 2:
                seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)


def ceilings(clock, device, size=8192, copied=1 << 30):
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = clock(lambda: a @ b.T)
    source = torch.empty(copied, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy = clock(lambda: target.copy_(source))
    return {"peak_tflops": 2 * size**3 / product / 1e12, "copy_rate": 2 * copied / copy / 1e9}


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
        if q.is_cuda:
            from torch.nn.attention.varlen import varlen_attn

            k, v = (part.repeat_interleave(self.h // self.k, dim=1) for part in (k, v))
            starts, longest = packing.starts, packing.longest
            return varlen_attn(q, k, v, starts, starts, longest, longest, True)
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


def packed_peers(config, lengths, device):
    """Name → work, over packed tokens."""
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

    return {"packed": over_layers(two_passes), "trimmed": over_layers(trimmed), "one pass": over_layers(one_pass)}


def hook_peers(config, lengths, device, budget):
    """Name → work, for models of `transformers`."""
    from transformers import AutoConfig, AutoModel
    from transformers_peer import Contributions

    kind, vocabulary = config.pop("model_type"), min(config["vocab_size"], 4096)
    config = AutoConfig.for_model(kind, **config, dtype=torch.bfloat16, use_cache=False)
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

    def compile_layers():
        for model in pair:
            for layer in model.layers:
                layer.compile()

    return work, compile_layers


def kernels(clock, config, lengths, device):
    """Name → (seconds, operations) of a layer's products and its attention, as libraries do them."""
    d, f, h = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    k, tokens = config["num_key_value_heads"], sum(lengths)
    dim = config.get("head_dim") or d // h
    found = {}
    shapes = {"q": (h * dim, d), "k": (k * dim, d), "o": (d, h * dim), "gate, up": (2 * f, d), "down": (d, f)}
    for name, (rows, cols) in shapes.items():
        x = torch.randn(tokens, cols, device=device, dtype=torch.bfloat16)
        w = torch.randn(rows, cols, device=device, dtype=torch.bfloat16)
        found[f"product {name} [{rows}, {cols}]"] = clock(lambda x=x, w=w: x @ w.T), 2.0 * tokens * rows * cols
    longest = max(lengths)
    shape = (max(tokens // longest, 1), h, longest, dim)
    q = torch.randn(shape, device=device, dtype=torch.bfloat16)
    kv = torch.randn(shape[0], k, *shape[2:], device=device, dtype=torch.bfloat16)
    attention = lambda: F.scaled_dot_product_attention(q, kv, kv, is_causal=True, enable_gqa=True)  # noqa: E731
    found[f"SDPA, {longest} tokens"] = clock(attention), 2.0 * shape[0] * h * dim * longest * (longest + 1)
    return found


def run(options, clock, device):
    bench = json.loads(options.bench.read_text())
    lengths = []
    while sum(lengths) < options.tokens if options.tokens else sum(lengths) < bench["tokens"]:
        lengths.append(bench["lengths"][len(lengths) % len(bench["lengths"])])
    config = bench["config"] | {"num_hidden_layers": bench["layers"]}
    tuco = next(timing for timing in bench["timings"] if timing["name"] == "score")["tokens_per_second"]
    print(f"{bench['shape']}, {bench['layers']} layers, {sum(lengths)} tokens in {len(lengths)} prompts; torch {torch.__version__}")
    print("\n| peer | tokens/s | tuco / peer |\n|---|---:|---:|", flush=True)
    print(f"| tuco score ({bench['device']}) | {tuco:.0f} | |", flush=True)

    def show(name, work):
        try:
            rate = sum(lengths) / clock(work)
        except Exception as error:  # noqa: BLE001  (a peer that does not run is told, the others go on)
            print(f"| {name} | does not run: {str(error).splitlines()[0][:80]} | |", flush=True)
            return
        print(f"| {name} | {rate:.0f} | {tuco / rate:.2f} |", flush=True)

    peers = packed_peers(config, lengths, device)
    for name, work in peers.items():
        show(name, work)
    del peers, work
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if not options.no_transformers:
        work, compile_layers = hook_peers(dict(config), lengths, device, options.batch_tokens)
        show("hooks", work)
        compile_layers()
        show("compiled", work)
        del work, compile_layers
    print("\n| library's kernel | ms | TFLOP/s |\n|---|---:|---:|")
    for name, (seconds, operations) in kernels(clock, config, lengths, device).items():
        print(f"| {name} | {seconds * 1e3:.3f} | {operations / seconds / 1e12:.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ceilings", "run"])
    parser.add_argument("bench", nargs="?", type=pathlib.Path, help="what tuco bench --output wrote")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--tokens", type=int, help="another number of tokens than the bench's")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="padded tokens in a batch of transformers")
    parser.add_argument("--no-transformers", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    clock = Clock(device, options.repeat)
    if options.what == "ceilings":
        small = {} if device.type == "cuda" else {"size": 1024, "copied": 1 << 26}
        print(json.dumps(ceilings(clock, device, **small)))
    elif options.bench is None:
        parser.error("run needs the file that tuco bench --output wrote")
    else:
        run(options, clock, device)


if __name__ == "__main__":
    main()
