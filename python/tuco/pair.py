"""Opening a pair."""

from __future__ import annotations

import datetime
import json
import operator
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, SupportsIndex, Union

from . import _native

if TYPE_CHECKING:
    from typing_extensions import Self

Path = Union[str, "os.PathLike[str]"]

_COUNTS = {"batch_size", "max_batch_tokens", "max_length", "threads"}


class Pair(_native.Pair):
    """A pre-trained model and the model fine-tuned from it, open and ready.

    Prompts of all methods are text, a conversation (a list of dicts with `role` and `content`), token ids (a list of integers, a
    numpy array of integers), or a list, two-dimensional array or Arrow column of such. Calls from several threads take turns; other
    Python threads run meanwhile. Ctrl-C stops a call between two layers.
    """

    @classmethod
    def from_pretrained(
        cls,
        base: Path | None = None,
        tuned: Path | None = None,
        adapter: Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        *,
        base_adapter: Path | None = None,
        merge_adapter: bool = False,
        base_revision: str | None = None,
        tuned_revision: str | None = None,
        adapter_revision: str | None = None,
        base_adapter_revision: str | None = None,
        tokenizer: Path | None = None,
        tokenizer_revision: str | None = None,
        apply_chat_template: bool = False,
        system_instruction: str | None = None,
        chat_template: Path | None = None,
        chat_template_args: Mapping[str, object] | None = None,
        template_date: datetime.date | str | None = None,
        max_length: int | None = None,
        on_overlength: str = "error-row",
        threads: int | None = None,
        batch_size: int | str | None = None,
        max_batch_tokens: int | str | None = None,
        max_memory: str | None = None,
        context_precision: str = "auto",
        resident: str = "auto",
        kernels: str = "auto",
    ) -> Self:
        """Opens a pair. Every argument is the flag of `tuco score` with its name; `tuco score --help` explains them.

        Args:
            base: the pre-trained model: a directory, a GGUF file, or a Hugging Face id in the local cache; default: what
                `adapter` was trained on.
            tuned: the model fine-tuned from it; default with `adapter`: the base.
            adapter: a PEFT adapter on the tuned model.
            device: auto, cpu, cuda, cuda:N, cuda:N,M,… (they share the batches) or reference.
            dtype: what weights are rounded to when they are read: auto (as stored), float32, bfloat16, float16.
            base_adapter: a PEFT adapter on the base.
            merge_adapter: round weights to the model's own type after an adapter was added.
            base_revision: branch, tag or commit of `base`, if that is an id.
            tuned_revision: the same of `tuned`.
            adapter_revision: the same of `adapter`.
            base_adapter_revision: the same of `base_adapter`.
            tokenizer: where tokenizer and chat template are; default: the tuned model.
            tokenizer_revision: the same of `tokenizer`.
            apply_chat_template: put text through the chat template as one user message.
            system_instruction: the system message of conversations that have none.
            chat_template: Jinja file of the chat template; default: the tokenizer's own.
            chat_template_args: what the chat template sees besides the conversation, such as `{"enable_thinking": False}`.
            template_date: the day that a chat template sees as today.
            max_length: the most tokens of a prompt; default: the tuned model's context.
            on_overlength: what becomes of longer prompts: error-row, truncate-left, truncate-right.
            threads: default: one for each core.
            batch_size: prompts that go through the layers together, or "auto". Results do not depend on it.
            max_batch_tokens: tokens that go through the layers together, a number or such as "64k". Results do not depend on it.
            max_memory: on the CPU: the most memory that the process may have in use when a call begins, its weights and batches
                included ("16G"), but not what the call gives. What the caller has in memory is counted, and freed memory goes back to
                the system at once from then on.
            context_precision: on a GPU: auto, bfloat16, float32.
            resident: on a GPU: keep the weights in its memory: auto, on, off.
            kernels: on a GPU: auto, sm_80, sm_90a.

        Raises:
            UsageError: names, files or numbers that cannot be meant.
            CheckpointError: a checkpoint that is broken or not supported.
            MismatchError: the two are no pair.
            DeviceError: there is no such GPU, or it cannot be used.
        """
        given = {name: value for name, value in locals().items() if name not in ("cls", "__class__")}
        options = [(name, option_text(name, value)) for name, value in given.items() if value is not None]
        return cls(options)


def option_text(name: str, value: object) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if name in _COUNTS and isinstance(value, SupportsIndex):
        return str(operator.index(value))
    if name == "chat_template_args" and isinstance(value, Mapping):
        return json.dumps(dict(value))
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, datetime.date):
        return value.isoformat()
    expected = "int" if name in _COUNTS else "str or a path"
    raise TypeError(f"{name} is {type(value).__name__}, expected {expected}")
