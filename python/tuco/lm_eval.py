"""A pair under alpha as a model of lm-evaluation-harness.

    python -m tuco.lm_eval --model tuco --model_args base=…,tuned=…,alpha=1.1 --tasks arc_easy

is `lm_eval` with one model more; programs import this module before they name the model. At alpha 1 it is the tuned model as the harness's
own `hf` runs it.
"""

from __future__ import annotations

import datetime
import inspect
import logging
import os
from collections import Counter
from typing import Any

from lm_eval import utils
from lm_eval.api.model import CacheHook, TemplateLM, hash_args
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from ._native import __version__
from .pair import Pair

logger = logging.getLogger(__name__)

_AT_ONCE = 256
"""Requests between two steps of the progress bar, and of the harness's cache."""

_DEFAULT_DEVICE = "cuda:0"
"""The device that `lm_eval` asks for by default."""

_ABOUT = "tuco"
"""Where a cache of the harness says what its answers depend on; its other keys are hashes."""

_WITHOUT_EFFECT = {"device", "threads", "batch_size", "max_batch_tokens", "max_memory", "resident"}
"""Options that change no answer. Devices round differently, but mean the same model: a cache may move from one to another."""

_PATHS = {"base", "tuned", "adapter", "base_adapter", "tokenizer"}


@register_model("tuco")
class TucoLM(TemplateLM):
    """Arguments are those of `Pair.from_pretrained`, and some of `hf`.

    Args:
        base: see `Pair.from_pretrained`, as for all that is not named here.
        tuned: the same.
        alpha: the factor on the fine-tuning component of every token.
        device: as of `Pair.from_pretrained`; the harness's own default, cuda:0, takes the CPU where there is no GPU.
        max_length: most tokens of a text; default: the tuned model's context. Longer ones lose their beginning.
        max_gen_toks: most tokens of a completion where a task does not say.
        add_bos_token: whether texts begin with the tokenizer's special tokens; default: as the tokenizer does.
        prefix_token_id: what stands before a text without context; default: the token that the tokenizer puts before texts, or where
            there is none the first of the model's end-of-text tokens.
        seed: what random choices depend on besides the request; `seed` among a task's generation options goes before it.
        batch_size: not used, nor is `max_batch_size`: `max_batch_tokens` bounds batches, and results do not depend on them.
    """

    def __init__(
        self,
        base: str | None = None,
        tuned: str | None = None,
        alpha: float = 1.0,
        device: str | None = None,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if options.get("apply_chat_template"):
            raise ValueError("apply_chat_template is an option of lm_eval itself (--apply_chat_template), not of the model")
        # The harness asks for its default whether its user has or not.
        device = "auto" if device in (None, _DEFAULT_DEVICE) else device
        self.pair = Pair.from_pretrained(base, tuned, device=device, **options)
        self.alpha = float(alpha)
        self.max_length = min(max_length or self.pair.max_length, self.pair.max_length)
        self.max_gen_toks = max_gen_toks
        self.add_bos_token = add_bos_token
        self.seed = seed
        self._name = f"{base} {tuned} {options.get('adapter', '')} {options.get('tokenizer', '')}"
        # What the tokenizer puts before a text.
        whole, bare = self.pair.encode(["a"])[0].tolist(), self.pair.encode_text("a").tolist()
        self._special = whole[: len(whole) - len(bare)] if whole[-len(bare) :] == bare else []
        if prefix_token_id is not None:
            self._prefix = prefix_token_id
        elif self._special:
            self._prefix = self._special[0]
        else:
            self._prefix = self.eot_token_id
        self._prefix_text = self.pair.decode([self._prefix])
        self._about = _about_pair({"base": base, "tuned": tuned, **options}) | {
            "alpha": self.alpha,
            "max_length": self.max_length,
            "max_gen_toks": max_gen_toks,
            "add_bos_token": add_bos_token,
            "prefix_token_id": self._prefix,
            "seed": seed,
            "tuco": __version__,
        }

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> TucoLM:
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> TucoLM:
        """What model_args say goes before what the harness adds, such as its default device."""
        added = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**added, **arg_dict})

    @property
    def eot_token_id(self) -> int:
        tokens = self.pair.stop_token_ids
        if not tokens:
            raise ValueError("the tuned model names no end-of-text token; name one with prefix_token_id=…")
        return tokens[0]

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        return self._name

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuses a cache of another model's answers: the harness finds them by the request alone."""
        cache = cache_hook.dbdict
        if cache is not None:
            before = cache.get(_ABOUT)
            if before is None and len(cache):
                raise ValueError(f"{cache.filename} has answers that do not say what model gave them; name another file in use_cache")
            if before is None:
                cache[_ABOUT] = self._about
            elif before != self._about:
                names = sorted(name for name in before.keys() | self._about.keys() if before.get(name) != self._about.get(name))
                told = ", ".join(f"{name} was {before.get(name)} and is now {self._about.get(name)}" for name in names)
                raise ValueError(f"{cache.filename} has answers of another model: {told}; name another file in use_cache")
        super().set_cache_hook(cache_hook)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token is not False and not string.startswith(self._prefix_text)
        return (self._special if add_special_tokens else []) + self.pair.encode_text(string).tolist()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = self.pair.apply_chat_template(chat_history, add_generation_prompt)
        if not add_generation_prompt:
            # The last message goes on: what closes it is left out.
            last = chat_history[-1]["content"].strip()
            text = text[: text.rindex(last) + len(last)]
        return text

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for start in range(0, len(requests), _AT_ONCE):
                some = requests[start : start + _AT_ONCE]
                prompts, continuations = zip(*(self._split(context, more) for _, context, more in some))
                found = self.pair.likelihoods(list(prompts), list(continuations), self.alpha, progress=False)
                for (request, _, _), (values, greedy) in zip(some, found):
                    answer = float(values.sum()), bool(greedy.all())
                    answers.append(answer)
                    if request is not None:
                        self.cache_hook.add_partial("loglikelihood", request, answer)
                bar.update(len(some))
        return answers

    def _split(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Context and continuation; what does not fit is cut from the left, the last token need not."""
        if len(continuation) > self.max_length:
            raise ValueError(f"a continuation has {len(continuation)} tokens, expected at most {self.max_length}")
        return self._cut(context, self.max_length + 1 - len(continuation)), continuation

    def _cut(self, tokens: list[int], room: int) -> list[int]:
        """The last tokens, as many as there is room for."""
        too_many = len(tokens) - room
        if too_many > 0:
            logger.warning("a text has %d tokens too many; they are cut from its beginning", too_many)
            tokens = tokens[too_many:]
        return tokens

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        windows, counts = [], []
        for request in requests:
            (text,) = request.args
            pieces = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *utils.make_disjoint_window(piece)) for piece in pieces]
            windows.extend(own)
            counts.append(len(own))
        values = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        sums = [sum(next(values)[0] for _ in range(count)) for count in counts]
        for request, value in zip(requests, sums):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        # What random choices depend on: the request itself, not those that happen to be asked with it, and which of its repeats it is.
        ids: list[str] = []
        asked: Counter[str] = Counter()
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
            name = hash_args("generate_until", request.args)
            ids.append(f"{name} {asked[name]}")
            asked[name] += 1
        texts = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for group in groups.values():
                options = self._options(requests[group[0]].args[1])
                room = self.max_length - options["max_new_tokens"]
                if room <= 0:
                    raise ValueError(
                        f"{options['max_new_tokens']} tokens are to be generated, expected less than {self.max_length} (max_length)"
                    )
                for start in range(0, len(group), _AT_ONCE):
                    some = group[start : start + _AT_ONCE]
                    prompts = [self._cut(self.tok_encode(requests[index].args[0]), room) for index in some]
                    chosen = [ids[index] for index in some]
                    found = self.pair.generate(prompts, self.alpha, ids=chosen, progress=False, **options)
                    for index, (completion,) in zip(some, found):
                        if completion.text is None:
                            raise ValueError("the tuned model has no tokenizer that can be read")
                        texts[index] = completion.text
                        self.cache_hook.add_partial("generate_until", requests[index].args, completion.text)
                    bar.update(len(some))
        return texts

    def _options(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What `Pair.generate` is asked for."""
        given = dict(normalize_gen_kwargs(asked, self.max_gen_toks))
        options: dict[str, Any] = {
            "max_new_tokens": given.pop("max_gen_toks"),
            "stop": [text for text in given.pop("until") if text],
            "seed": given.pop("seed", self.seed),
        }
        beams = given.pop("num_beams", 1)
        if beams != 1:
            raise ValueError(f"num_beams is {beams}, expected 1: tuco has no beam search")
        samples, temperature = given.pop("do_sample"), float(given.pop("temperature", 1.0))
        choice = {name: given.pop(name) for name in ("top_k", "top_p") if name in given}
        if samples and temperature > 0:
            options.update(choice, temperature=temperature)
        if given:
            raise ValueError(f"generation options that tuco does not have: {', '.join(sorted(given))}")
        return options


def _about_pair(options: dict[str, Any]) -> dict[str, Any]:
    """What the answers of a pair depend on: its options, and when its files were written."""
    defaults = {name: option.default for name, option in inspect.signature(Pair.from_pretrained).parameters.items()}
    given = {name: value for name, value in {**defaults, **options}.items() if name not in _WITHOUT_EFFECT}
    return {name: _place(value) if name in _PATHS and value is not None else value for name, value in given.items()}


def _place(path: Any) -> str:
    """A model's path and when its newest file was written; the id of one in Hugging Face's cache as it is."""
    if not os.path.exists(path):
        return str(path)
    files = [entry.path for entry in os.scandir(path) if entry.is_file()] if os.path.isdir(path) else [path]
    newest = max((os.path.getmtime(file) for file in files), default=0.0)
    return f"{os.path.realpath(path)} of {datetime.datetime.fromtimestamp(newest, datetime.timezone.utc)}"


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
