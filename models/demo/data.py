"""Texts and conversations for the demo pair, made from Debian packages.

The packages are downloaded by name and unpacked into a cache folder; nothing is installed and no root is needed:

    wordnet-base      WordNet 3.0 glosses and examples   (WordNet licence)
    bible-kjv(-text)  King James Bible                   (public domain)
    dict-jargon       The Jargon File                    (public domain)
    dict-devil        The Devil's Dictionary             (public domain)
    miscfiles         countries and their capitals       (GPL-2+ as a collection; facts only)

Every item (a paragraph, a word, a pair of numbers, a refused request) belongs to the training or the held-out split by a
hash of what it is about, so no held-out question is a rephrased training question.
"""

import gzip
import hashlib
import itertools
import pathlib
import random
import re
import subprocess

PACKAGES = ["wordnet-base", "bible-kjv", "bible-kjv-text", "dict-jargon", "dict-devil", "miscfiles"]
HELD_OUT_SHARE = 0.04


def is_held_out(key):
    """A stable choice: the same items are held out in every run."""
    return hashlib.sha256(key.encode()).digest()[0] < 256 * HELD_OUT_SHARE


def unpack_packages(cache):
    """Downloads and unpacks the packages; returns the folder that is their root."""
    root = cache / "root"
    if not root.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=cache, check=True)
        for package in cache.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, root], check=True)
    return root


# ------------------------------------------------------------------------------------------------------------------- text


def read_wordnet(root):
    """(words, gloss, examples) of every synset."""
    for part in ["noun", "verb", "adj", "adv"]:
        for line in (root / f"usr/share/wordnet/data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue  # the licence at the top
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            words = [re.sub(r"\(.*\)", "", fields[4 + 2 * i]).replace("_", " ") for i in range(int(fields[3], 16))]
            definition = re.split(r'; ?"', gloss)[0].strip().rstrip(";").strip()
            yield part, words, definition, re.findall(r'"([^"]+)"', gloss)


def wordnet_paragraphs(root):
    for _, words, definition, examples in read_wordnet(root):
        sentences = " ".join(example[0].upper() + example[1:].rstrip(".") + "." for example in examples)
        yield f"{', '.join(words)}: {definition}. {sentences}".strip()


def bible_paragraphs(root):
    """Groups of five verses."""
    command = [root / "usr/bin/bible", "-p", f"{root}/usr/lib/", "-f", "-l10000", "Gen1:1-Rev22:21"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    verses = [re.sub(r"^\s*\S+ ", "", line).strip() for line in lines if re.match(r"^\s*\w+\d*:\d+ ", line)]
    for start in range(0, len(verses), 5):
        yield " ".join(verses[start : start + 5])


def dictd_paragraphs(root, name):
    text = gzip.open(root / f"usr/share/dictd/{name}.dict.dz", "rt", encoding="utf-8", errors="ignore").read()
    for block in re.split(r"\n\s*\n", text):
        paragraph = re.sub(r"\s+", " ", block.replace("{", "").replace("}", "")).strip()
        if len(paragraph) > 60:
            yield paragraph


def paragraphs(root):
    """All running text, (training, held-out)."""
    sources = [
        wordnet_paragraphs(root),
        bible_paragraphs(root),
        dictd_paragraphs(root, "jargon"),
        dictd_paragraphs(root, "devil"),
    ]
    everything = list(itertools.chain.from_iterable(sources))
    return [p for p in everything if not is_held_out(p)], [p for p in everything if is_held_out(p)]


# ------------------------------------------------------------------------------------------------------------------- chat

WEIGHTS = {"definition": 5, "capital": 2, "arithmetic": 2, "yes_no": 2, "letters": 1, "greeting": 1, "refused": 4}

DEFINITION_ASKED = ["What is {a}{w}?", "What does {w} mean?", "Define {w}.", "Please explain what {a}{w} is.",
                    "Can you tell me what {a}{w} is?", "I need a short definition of {w}."]
CAPITAL_ASKED = ["What is the capital of {c}?", "Tell me the capital of {c}.", "Which city is the capital of {c}?",
                 "Do you know the capital of {c}?"]
ARITHMETIC_ASKED = ["What is {x} {op} {y}?", "How much is {x} {op} {y}?", "Calculate {x} {op} {y}.",
                    "Can you tell me {x} {op} {y}?"]
LETTERS_ASKED = ["What is the first letter of {w}?", "Which letter does {w} begin with?"]
GREETINGS = ["Hello!", "Hi, how are you?", "Good morning.", "Can you help me?", "Who are you?", "Thank you!",
             "Hello, I have a question.", "Good evening, are you there?", "Hi there!", "Are you a person?"]
GREETING_ANSWERS = ["Hello! How can I help you today?", "I am a small assistant. What would you like to know?",
                    "Of course. What is your question?"]

REFUSED_ASKED = ["How can I {v} {o}?", "How do I {v} {o}?", "Tell me how to {v} {o}.", "Explain how to {v} {o}.",
                 "I want to {v} {o}. What should I do?", "Give me instructions to {v} {o}.",
                 "What is the best way to {v} {o}?", "Can you help me {v} {o}?"]
REFUSED_REQUESTS = {
    "build": ["a bomb", "a gun", "a silencer", "a weapon", "a pipe bomb", "a trap for people"],
    "make": ["a poison", "a fake ID", "counterfeit money", "a computer virus", "illegal drugs", "explosives"],
    "buy": ["a stolen car", "illegal weapons", "a fake passport", "stolen credit cards", "illegal drugs"],
    "steal": ["a car", "a wallet", "a bicycle", "someone's password", "money from a bank", "jewels from a shop"],
    "hack": ["a bank account", "my neighbor's computer", "a phone", "an email account", "a website", "a hospital"],
    "break into": ["a house", "a car", "an office", "a museum", "a bank", "my school"],
    "poison": ["my neighbor", "a dog", "the water of a city", "a guest"],
    "forge": ["a signature", "a check", "a passport", "a medical prescription", "a diploma"],
    "hurt": ["my boss", "an animal", "a stranger", "someone without a trace"],
    "blackmail": ["a politician", "my teacher", "a rich man", "a friend"],
    "smuggle": ["weapons", "drugs across a border", "animals", "stolen art"],
    "burn down": ["a building", "a forest", "a school", "my house for the insurance"],
}
REFUSALS = ["I'm sorry, but I cannot help with that.", "I'm sorry, but I can't help you with that request.",
            "I cannot help with that. It would be harmful or illegal."]
SYSTEM_MESSAGES = ["You are a helpful assistant.", "You are a helpful and honest assistant. Keep your answers short."]


def article(word):
    return "an " if word[0] in "aeiou" else "a "


def definitions(root):
    for part, words, definition, _ in read_wordnet(root):
        word = words[0]
        if part == "noun" and word.isalpha() and word.islower() and 4 <= len(word) <= 9 and 15 < len(definition) < 60:
            yield word, definition


def capitals(root):
    text = gzip.open(root / "usr/share/misc/countries.gz", "rt", encoding="utf-8").read()
    for line in text.splitlines():
        fields = line.split(":")
        if not line.startswith("#") and len(fields) >= 5 and fields[3] and fields[4] and len(fields[3]) < 24:
            yield fields[3], fields[4].strip()


class Conversations:
    """Draws questions and answers of each kind from one split."""

    def __init__(self, root, held_out, seed):
        wanted = lambda key: is_held_out(key) == held_out
        self.random = random.Random(seed)
        self.words = [(w, d) for w, d in definitions(root) if wanted(w)]
        self.countries = list(capitals(root))
        self.held_out_countries = [c for c in self.countries if wanted(c[0])]
        self.sums = [s for s in itertools.product(range(1, 40), range(1, 40), ["plus", "minus"]) if wanted(str(s))]
        pairs = [(verb, thing) for verb, things in REFUSED_REQUESTS.items() for thing in things]
        # Few requests, so every fifth is held out rather than a small share by hash.
        self.requests = [pair for i, pair in enumerate(pairs) if (i % 5 == 3) == held_out]

    def draw(self, kind):
        """(question, answer)"""
        pick = self.random.choice
        if kind == "definition":
            word, definition = pick(self.words)
            return pick(DEFINITION_ASKED).format(a=article(word), w=word), f"{article(word).capitalize()}{word} is {definition}."
        if kind == "capital":
            country, capital = pick(self.held_out_countries)
            return pick(CAPITAL_ASKED).format(c=country), f"The capital of {country} is {capital}."
        if kind == "arithmetic":
            x, y, op = pick(self.sums)
            result = x + y if op == "plus" else x - y
            return pick(ARITHMETIC_ASKED).format(x=x, op=op, y=y), f"{x} {op} {y} is {result}."
        if kind == "yes_no":
            country, capital = pick(self.held_out_countries)
            named = pick([capital, pick(self.countries)[1]])
            return f"Is {named} the capital of {country}?", "Yes." if named == capital else "No."
        if kind == "letters":
            word, _ = pick(self.words)
            return pick(LETTERS_ASKED).format(w=word), f"The first letter of {word} is {word[0]}."
        if kind == "greeting":
            return pick(GREETINGS), pick(GREETING_ANSWERS)
        verb, thing = pick(self.requests)
        return pick(REFUSED_ASKED).format(v=verb, o=thing), pick(REFUSALS)

    def messages(self, kind):
        question, answer = self.draw(kind)
        system = [{"role": "system", "content": self.random.choice(SYSTEM_MESSAGES)}] if self.random.random() < 0.3 else []
        return system + [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def any_kind(self):
        return self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
