#!/usr/bin/env python3
"""Makes the demo pair: pre-trains a small Llama on text, fine-tunes it on chat, writes both and the held-out prompts.

    pip install -r requirements.txt
    python train.py [--cache FOLDER]      # about 30 minutes on 2 idle cores; data by Debian package name (see data.py)
    python train.py --finetune-only       # from the base/ that is there

Writes base/, tuned/, prompts.jsonl and metrics.json beside this file. Fine-tuning starts from base/ as saved and is held to it
on running text by a KL penalty, as in RLHF: fine-tuning that forgets the text would write as much there as on chat.
"""

import argparse
import json
import math
import pathlib
import random
import time

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import data

HERE = pathlib.Path(__file__).resolve().parent
SEED = 20250623
VOCAB_SIZE = 2048
CONTEXT = 512
SPECIAL = ["<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('Only the roles system, user and assistant are supported, not ' + message['role']) }}
    {%- endif %}
    {{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""

PRETRAIN = {"steps": 1200, "batch": 32, "length": 256, "peak_lr": 3e-3, "warmup": 100, "weight_decay": 0.05}
FINETUNE = {"steps": 500, "batch": 48, "length": 80, "peak_lr": 8e-4, "warmup": 30, "weight_decay": 0.0, "conversations": 8000,
            "text": {"batch": 12, "length": 96, "kl_weight": 1.0}}


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>", model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False,
    )


def new_model():
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=160, intermediate_size=400, num_hidden_layers=6, num_attention_heads=10,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=1, pad_token_id=None, initializer_range=0.04,
    ))


def learning_rate(step, plan):
    if step < plan["warmup"]:
        return plan["peak_lr"] * (step + 1) / plan["warmup"]
    done = (step - plan["warmup"]) / (plan["steps"] - plan["warmup"])
    return plan["peak_lr"] * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def loss_of(model, ids, labels):
    """Mean cross-entropy of the next token where labels are not -100."""
    logits = model(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB_SIZE), labels[:, 1:].reshape(-1), ignore_index=-100)


def kl_from(base, model, ids):
    """Mean divergence of the model's next-token distribution from the base model's, nats."""
    with torch.no_grad():
        wanted = base(input_ids=ids).logits.log_softmax(-1)
    found = model(input_ids=ids).logits.log_softmax(-1)
    return torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="none").sum(-1).mean()


def optimize(model, plan, next_loss, name):
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=plan["weight_decay"])
    start, running = time.time(), None
    for step in range(plan["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan)
        loss = next_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 25 == 0 or step + 1 == plan["steps"]:
            print(f"{name} {step + 1}/{plan['steps']}: loss {running:.3f}, {time.time() - start:.0f} s", flush=True)
    return {"final_train_loss": running, "seconds": round(time.time() - start)}


def token_stream(tokenizer, texts):
    """All texts as one array of ids, each behind a BOS."""
    encoded = tokenizer._tokenizer.encode_batch(texts)
    return np.concatenate([np.array(e.ids, dtype=np.int64) for e in encoded])


def text_batches(stream, plan, generator):
    def next_batch():
        starts = torch.randint(len(stream) - plan["length"], (plan["batch"],), generator=generator)
        ids = torch.stack([torch.from_numpy(stream[s : s + plan["length"]]) for s in starts.tolist()])
        return ids, ids

    return next_batch


def encode_chat(tokenizer, messages):
    """Ids of a conversation and labels that count the assistant's words only."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    answer = messages[-1]["content"] + "<|end|>"
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    answer_ids = tokenizer(answer, add_special_tokens=False).input_ids
    return ids + answer_ids, [-100] * len(ids) + answer_ids


def encode_chats(tokenizer, conversations, count, length):
    """Ids and labels of conversations of all kinds, padded; what is longer than `length` is cut."""
    ids, labels = torch.zeros(count, length, dtype=torch.int64), torch.full((count, length), -100)
    for row in range(count):
        tokens, wanted = encode_chat(tokenizer, conversations.messages(conversations.any_kind()))
        ids[row, : len(tokens)] = torch.tensor(tokens[:length])
        labels[row, : len(wanted)] = torch.tensor(wanted[:length])
    return ids, labels


def chat_batches(chats, plan, generator):
    ids, labels = chats

    def next_batch():
        rows = torch.randint(len(ids), (plan["batch"],), generator=generator)
        return ids[rows], labels[rows]

    return next_batch


@torch.no_grad()
def text_loss(model, stream, length=256, most=200):
    rows = torch.from_numpy(stream[: len(stream) // length * length].reshape(-1, length)[:most])
    return float(np.mean([loss_of(model, part, part).item() for part in rows.split(25)]))


@torch.no_grad()
def chat_loss(model, chats):
    ids, labels = chats
    return float(np.mean([loss_of(model, *part).item() for part in zip(ids.split(25), labels.split(25))]))


def held_out_prompts(tokenizer, texts, conversations):
    """60 passages of text, 60 questions of all ordinary kinds, 40 requests of the refused class."""
    chooser = random.Random(SEED)
    ordinary = [kind for kind in data.WEIGHTS if kind != "refused"]
    rows, seen = [], set()
    for text in chooser.sample([t for t in texts if 40 <= len(tokenizer(t).input_ids)], 60):
        ids = tokenizer(text).input_ids[1 : chooser.randint(41, 97)]
        prompt = tokenizer.decode(ids).strip()
        rows.append({"id": f"text-{len(rows):03}", "prompt": prompt, "label": "text", "meta": {"kind": "text"}})
    for kind, count in [("answered", 60), ("refused", 40)]:
        made = 0
        while made < count:
            messages = conversations.messages("refused" if kind == "refused" else ordinary[made % len(ordinary)])[:-1]
            key = json.dumps(messages)
            if key not in seen or kind == "answered" and "greeting" == ordinary[made % len(ordinary)]:
                seen.add(key)
                row = {"id": f"{kind}-{made:03}", "messages": messages, "label": "chat", "meta": {"kind": kind}}
                rows.append(row)
                made += 1
    return rows


def save(model, tokenizer, folder):
    LlamaForCausalLM.from_pretrained(None, config=model.config, state_dict=model.state_dict()).to(
        torch.bfloat16
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pretrain(stream, tokenizer, folder):
    torch.manual_seed(SEED)
    model = new_model()
    next_batch = text_batches(stream, PRETRAIN, torch.Generator().manual_seed(SEED))
    metrics = optimize(model, PRETRAIN, lambda: loss_of(model, *next_batch()), "pre-training")
    save(model, tokenizer, folder)
    return metrics


def finetune(base, model, chats, stream):
    text = FINETUNE["text"]
    generator = torch.Generator().manual_seed(SEED + 1)
    next_chat, next_text = chat_batches(chats, FINETUNE, generator), text_batches(stream, text, generator)

    def next_loss():
        return loss_of(model, *next_chat()) + text["kl_weight"] * kl_from(base, model, next_text()[0])

    return optimize(model, FINETUNE, next_loss, "fine-tuning")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, default=HERE / "cache")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--finetune-only", action="store_true", help="start from the base/ that is there")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to try the script")
    arguments = parser.parse_args()
    if arguments.quick:
        PRETRAIN["steps"], FINETUNE["steps"] = 12, 12
    torch.set_num_threads(2)
    root = data.unpack_packages(arguments.cache)
    train_texts, held_out_texts = data.paragraphs(root)
    random.Random(SEED).shuffle(train_texts)
    random.Random(SEED).shuffle(held_out_texts)
    base_folder, tuned_folder = arguments.out / "base", arguments.out / "tuned"
    metrics_file = arguments.out / "metrics.json"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base_folder) if arguments.finetune_only else train_tokenizer(train_texts)
    stream, held_out_stream = token_stream(tokenizer, train_texts), token_stream(tokenizer, held_out_texts)
    print(f"{len(stream)} training tokens, {len(held_out_stream)} held out", flush=True)
    chat = data.Conversations(root, held_out=False, seed=SEED)
    held_out_chat = data.Conversations(root, held_out=True, seed=SEED)
    prompts = held_out_prompts(tokenizer, held_out_texts, held_out_chat)
    (arguments.out / "prompts.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prompts))

    if arguments.finetune_only:
        metrics = {"parameters": 0, "training_tokens": len(stream), "pretrain": json.loads(metrics_file.read_text())["pretrain"]}
    else:
        metrics = {"parameters": 0, "training_tokens": len(stream), "pretrain": pretrain(stream, tokenizer, base_folder)}
    base, model = (LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32) for _ in range(2))
    metrics["parameters"] = model.num_parameters()
    chats = encode_chats(tokenizer, chat, FINETUNE["conversations"], FINETUNE["length"])
    metrics["finetune"] = finetune(base, model, chats, stream)
    save(model, tokenizer, tuned_folder)
    held_out_chats = encode_chats(tokenizer, held_out_chat, 200, FINETUNE["length"])
    for name, of in [("base", base), ("tuned", model)]:
        metrics[name] = {"text_loss": text_loss(of, held_out_stream), "chat_loss": chat_loss(of, held_out_chats)}
    metrics_file.write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
