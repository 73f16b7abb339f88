"""A tiny tokenizer, the same in GGUF files for each rule of cutting a text, and what they make of texts and conversations."""

import json
import pathlib

import gguf
import transformers
from cases import message
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Tokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

HERE = pathlib.Path(__file__).resolve().parent

SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]

CORPUS = """\
The quick brown fox jumps over the lazy dog. What is the answer to the question that the user asked the assistant?
I am sorry, but I can not help with that. The assistant answers the user's question, and the user thanks the assistant.
If there is anything else that you want to know about this, then please ask another question, and I will answer it.
"""

TEXTS = [
    "",
    "Hello",
    " Hello",
    "The user asked the assistant a question.",
    "two  spaces,   three    four\t\ttabs \n\nnew lines \r\n",
    "  leading and trailing  ",
    "Grüße aus Köln, naïve café",
    "e\u0301 against \u00e9",
    "東京と大阪 Привет мир مرحبا",
    "emoji 🚀👩‍👩‍👧 done",
    "I'm you're they'LL don't 1234567 3.14",
    "<s>",
    "a <s> inside and </s> after",
    "<|user|>spelled in text<|end|> and <|user|",
    "<|assistant|> <|end|>\n<|end|>",
    "null \u0000 and \u00a0 and \ufeff and \u200d",
]

# Writes bos_token itself: the ids must not get a second one from the tokenizer.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] | trim + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Writes none: the ids must not get one at all.
CHAT_TEMPLATE_WITHOUT_BOS = CHAT_TEMPLATE.removeprefix("{{ bos_token }}")

CHATS = [
    [message("user", "Hello")],
    [message("user", "  What is the answer?  "), message("assistant", "Grüße 🚀"), message("user", "<s>again<|end|></s>")],
]


def train_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def tokenization(tokenizer):
    plain = [
        {"text": text, "token_ids": tokenizer(text)["input_ids"], "without_special": tokenizer(text, add_special_tokens=False)["input_ids"]}
        for text in TEXTS
    ]
    chats = []
    for template in (CHAT_TEMPLATE, CHAT_TEMPLATE_WITHOUT_BOS):
        for messages in CHATS:
            arguments = dict(chat_template=template, add_generation_prompt=True)
            chats.append(
                {
                    "template": template,
                    "messages": messages,
                    "add_generation_prompt": True,
                    "text": tokenizer.apply_chat_template(messages, tokenize=False, **arguments),
                    "token_ids": tokenizer.apply_chat_template(messages, tokenize=True, **arguments)["input_ids"],
                }
            )
    return {"bos_token": "<s>", "eos_token": "</s>", "plain": plain, "chats": chats}


# -------------------------------------------------------------------------------------------------------- GGUF tokenizers


class Llama3Converter(TikTokenConverter):
    """What `transformers` makes of Llama 3's tokenizer, with our tokens."""

    def __init__(self, vocab, merges):
        super().__init__(None, extra_special_tokens=SPECIALS)
        self.vocab, self.merges = vocab, merges

    def extract_vocab_merges_from_model(self, _):
        return self.vocab, self.merges


def gguf_tokenizers(trained):
    """Of each rule a tokenizer made by `transformers`; that of SmolLM as its tokenizer.json has it."""
    model = json.loads(trained.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    # Tokens that only some of the rules let come about.
    for pair in [("1", "2"), ("12", "3"), ("123", "4"), ("Ġ", "1"), ("Ġ", "Ġ"), ("?", "Ċ"), ("ĠĠ", "Ċ")]:
        if pair not in merges:
            merges.append(pair)
            vocab["".join(pair)] = len(vocab)
    made = {
        "gpt-2": GPT2Tokenizer(vocab, merges, unk_token="<s>", bos_token="<s>", eos_token="</s>").backend_tokenizer,
        "qwen2": Qwen2Tokenizer(vocab, merges, unk_token="<s>", eos_token="</s>", pad_token="</s>").backend_tokenizer,
        "llama-bpe": Llama3Converter(vocab, merges).converted(),
        "smollm": Tokenizer(models.BPE(vocab, merges)),
    }
    made["smollm"].pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for tokenizer in made.values():
        tokenizer.add_special_tokens(SPECIALS)
    return vocab, merges, made


def write_gguf(rule, vocab, merges):
    path = HERE / "gguf" / f"{rule}.gguf"
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    tokens = sorted(vocab, key=vocab.get)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIALS else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(vocab["<s>"])
    writer.add_eos_token_id(vocab["</s>"])
    writer.add_chat_template(CHAT_TEMPLATE)
    if rule != "llama-bpe":
        writer.add_add_bos_token(rule == "gpt-2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def gguf_tokenization(trained):
    vocab, merges, made = gguf_tokenizers(trained)
    rules = []
    for rule, tokenizer in made.items():
        write_gguf(rule, vocab, merges)
        adds_bos = rule in ("gpt-2", "llama-bpe")  # the latter by the rule's own default
        texts = TEXTS + ["12 1234 123456", "a ?\n\n  \nb",  "it's 10 o'CLOCK", "x1y22z333", "a\u0301 \u1100\u1161\u11a8"]
        plain = []
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            plain.append({"text": text, "token_ids": [vocab["<s>"]] * adds_bos + ids})
        rules.append({"rule": rule, "plain": plain})
    return {"transformers": transformers.__version__, "rules": rules}
