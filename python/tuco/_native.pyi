"""The native part of tuco; `tuco.Pair` adds `from_pretrained` to this `Pair`."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, final, overload

from typing_extensions import Self

from .errors import PromptError
from .typing import Bools, Floats, Ids, Message, Prompt, Prompts, TokenIds

__all__ = ["Completion", "Pair", "Scores", "Trace", "__version__", "main", "run"]

__version__: str

def main(line: Sequence[str]) -> int:
    """The program `tuco`, whose words are given with the program's name first; its exit code. It takes the process over: signals no
    longer reach Python."""

def run(words: Sequence[str]) -> None:
    """Runs a subcommand, whose words are given, as a part of a Python program: environment variables (`TUCO_…`) are not read, errors
    are raised, and what a signal handler raises stops it after what is written."""

class Pair:
    """A pre-trained model and the model fine-tuned from it, open and ready."""

    def __new__(cls, options: list[tuple[str, str]]) -> Self: ...
    def close(self) -> None:
        """Gives back memory, threads and device. Passes that other threads have begun end first."""
    def cancel(self) -> None:
        """Stops the calls that other threads have begun, those that wait for their turn too: they raise `CancelledError`."""
    @property
    def closed(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...
    @property
    def device(self) -> str:
        """What computes: `cpu`, `reference`, or a GPU."""
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def max_length(self) -> int:
        """The most tokens that a prompt may have."""
    @property
    def stop_token_ids(self) -> list[int]:
        """The tokens that end a completion at alpha 1."""
    @property
    def notices(self) -> list[str]:
        """Differences between the two models that are allowed, a sentence each."""
    def encode(self, prompts: Prompts) -> list[Ids]:
        """The token ids of each prompt, uint32, as the other methods make them."""
    def encode_text(self, text: str) -> Ids:
        """The token ids of text alone: no special tokens are added."""
    def decode(self, token_ids: TokenIds, skip_special_tokens: bool = False) -> str:
        """What token ids say together."""
    def apply_chat_template(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text that the chat template makes of a conversation."""
    def score(
        self,
        prompts: Prompts,
        layers: bool = False,
        all_tokens: bool = False,
        *,
        output_co: bool = False,
        errors: str = "raise",
        progress: bool | None = None,
    ) -> Scores:
        """TuCo of every prompt.

        Args:
            prompts: see `tuco.Pair`.
            layers: add `beta_per_layer`, the contribution after each layer.
            all_tokens: add `tuco_per_token`, TuCo of every token (about two more passes).
            output_co: add `output_co`, how far the two models' own outputs are apart (another pass).
            errors: "raise" raises for the first prompt that cannot be scored, before anything is computed if it can be told; "rows"
                gives it NaN and an entry in `errors`.
            progress: show a tqdm bar; default: in a terminal, if tqdm is installed.

        Raises:
            PromptError: a prompt that is empty, too long, or does not suit the chat template; one that overflows, or that the device's
                memory does not hold alone (its `scores` are those of the others).
            TypeError, ValueError: what is no prompt.
        """
    @overload
    def logits(
        self,
        prompts: Prompts,
        alpha: float | None = None,
        *,
        tokens: TokenIds | None = None,
        errors: str = "raise",
        progress: bool | None = None,
    ) -> Floats:
        """Logits of the token after each prompt.

        Args:
            prompts: see `tuco.Pair`.
            alpha: the factor on the fine-tuning component of every token: 1 (the default) is the tuned model, 0 the base's blocks
                between the tuned embedding and head.
                A list of factors costs less than as many calls.
            tokens: only the logits of these tokens, in this order.
            errors: as of `score`; with "rows" a prompt that cannot be used has NaN.
            progress: show a tqdm bar; default: in a terminal, if tqdm is installed.

        Returns:
            float64, `[prompts, tokens]`; for a list of alphas `[alphas, prompts, tokens]`.

        Raises:
            PromptError: as of `score` (its `logits` are those of the others).
        """
    @overload
    def logits(
        self,
        prompts: Prompts,
        alpha: Sequence[float] | Floats,
        *,
        tokens: TokenIds | None = None,
        errors: str = "raise",
        progress: bool | None = None,
    ) -> Floats: ...
    @overload
    def likelihoods(
        self,
        prompts: Prompts,
        continuations: Iterable[str | TokenIds],
        alpha: float = 1.0,
        *,
        errors: Literal["raise"] = "raise",
        progress: bool | None = None,
    ) -> list[tuple[Floats, Bools]]:
        """How likely what follows each prompt is, token by token.

        Args:
            prompts: see `tuco.Pair`.
            continuations: what follows each of them: text, or token ids.
            alpha: the factor on the fine-tuning component of every token.
            errors: as of `score`; with "rows" a prompt that cannot be used has its `PromptError` in its place.
            progress: show a tqdm bar; default: in a terminal, if tqdm is installed.

        Returns:
            for each prompt the natural logarithms of the probabilities of its continuation's tokens, and whether each is what greedy
            decoding takes.

        Raises:
            PromptError: as of `score` (its `likelihoods` are those of the others).
        """
    @overload
    def likelihoods(
        self,
        prompts: Prompts,
        continuations: Iterable[str | TokenIds],
        alpha: float = 1.0,
        *,
        errors: str,
        progress: bool | None = None,
    ) -> list[tuple[Floats, Bools] | PromptError]: ...
    @overload
    def generate(
        self,
        prompts: Prompts,
        alpha: float = 1.0,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        n: int = 1,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        tuco: bool = False,
        ids: Iterable[str | int] | None = None,
        errors: Literal["raise"] = "raise",
        progress: bool | None = None,
    ) -> list[list[Completion]]:
        """What follows each prompt, a list of `n` completions for each, as `tuco generate` writes them.

        Args:
            prompts: see `tuco.Pair`.
            alpha: the factor on the fine-tuning component of every token of prompt and completion: 1 is the tuned model, 0 the
                base's blocks between the tuned embedding and head.
            max_new_tokens: most tokens of a completion.
            temperature: divides the logits before a random choice; 0 takes the likeliest token.
            top_p: choose among the fewest of the likeliest tokens whose probabilities sum up to this.
            top_k: choose among so many of the likeliest tokens.
            n: completions of each prompt; more than one need a temperature.
            seed: another number gives other random choices.
            stop: text that ends a completion and is left out of it.
            ignore_eos: go on after the model's end-of-text tokens.
            tuco: add the TuCo of every token.
            ids: what a prompt's random choices depend on besides `seed`; default: its number in the list, from 1 on.
            errors: as of `score`; with "rows" a prompt that cannot be used has its `PromptError` in its place.
            progress: show a tqdm bar; default: in a terminal, if tqdm is installed.

        Raises:
            UsageError: a number out of range, or one that has no effect at temperature 0.
            PromptError: as of `score` (its `completions` are those of the others).
        """
    @overload
    def generate(
        self,
        prompts: Prompts,
        alpha: float = 1.0,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        n: int = 1,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        tuco: bool = False,
        ids: Iterable[str | int] | None = None,
        errors: str,
        progress: bool | None = None,
    ) -> list[list[Completion] | PromptError]: ...
    def trace(self, prompt: Prompt, response: str | None = None) -> Trace:
        """The contributions of every layer to every token of a prompt, and of the response that follows it.

        Raises:
            PromptError: a prompt that cannot be used, or is too long with its response.
            NotFiniteError: a hidden state that overflows.
        """

@final
class Completion:
    """What follows a prompt."""

    def __new__(
        cls,
        text: str | None,
        token_ids: Ids,
        finish_reason: str,
        stop: str | None,
        tuco: Floats | None,
        n_prompt: int,
        truncated: bool,
    ) -> Self: ...
    @property
    def text(self) -> str | None:
        """Without special tokens and stop text; `None` without a tokenizer."""
    @property
    def token_ids(self) -> Ids:
        """With the token that ended it."""
    @property
    def finish_reason(self) -> Literal["stop", "length"]: ...
    @property
    def stop(self) -> str | None:
        """The stop text that ended it."""
    @property
    def tuco(self) -> Floats | None:
        """TuCo of the hidden state that each token was chosen from, the first one's being the prompt's; `None` if not asked
        for."""
    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
    @property
    def truncated(self) -> bool:
        """Tokens of the prompt were left out."""

@final
class Scores:
    """Scores of prompts, in order: columns as numpy arrays, rows as dicts, all of it as an Arrow table, over the same memory.

    pyarrow (`pyarrow.table(scores)`), polars (`polars.DataFrame(scores)`) and DuckDB read it without copies.
    """

    def __new__(cls, ipc: bytes) -> Self: ...
    @property
    def tuco(self) -> Floats:
        """TuCo of each prompt; NaN where a prompt could not be scored."""
    @property
    def ptc_l1(self) -> Floats:
        """L1 norm of the summed contributions of pre-training to the last token."""
    @property
    def ftc_l1(self) -> Floats:
        """L1 norm of the summed contributions of fine-tuning to the last token."""
    @property
    def beta(self) -> Floats:
        """The largest contribution after any layer."""
    @property
    def n_tokens(self) -> Ids:
        """Tokens of each prompt."""
    @property
    def truncated(self) -> Bools:
        """Whether tokens of each prompt were left out."""
    @property
    def beta_per_layer(self) -> Floats:
        """The contribution after each layer, `[prompts, layers]`."""
    @property
    def output_co(self) -> Floats:
        """OutputCo of each prompt."""
    @property
    def tuco_per_token(self) -> list[Floats]:
        """TuCo of every token, an array for each prompt."""
    @property
    def errors(self) -> dict[int, str]:
        """Prompts that could not be scored: index → message."""
    def to_arrow(self) -> Any:
        """A pyarrow table over the same memory."""
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[dict[str, Any]]: ...
    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """A row as a dict, with the fields that `tuco score` writes."""
    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...
    def __arrow_c_schema__(self) -> object: ...

@final
class Trace:
    """The contributions of every layer to every token of one prompt and response."""

    def __new__(
        cls,
        token_ids: Ids,
        tokens: list[str] | None,
        n_prompt: int,
        truncated: bool,
        tuco: Floats,
        beta_per_layer: Floats,
        attention_per_layer: Floats,
        mlp_per_layer: Floats,
        ptc_l1: Floats,
        ftc_l1: Floats,
        pt_logits: Floats | None,
        ft_logits: Floats | None,
    ) -> Self: ...
    @property
    def token_ids(self) -> Ids:
        """`[tokens]`"""
    @property
    def tokens(self) -> list[str] | None:
        """The text of each token; `None` without a tokenizer."""
    @property
    def n_prompt(self) -> int:
        """How many of the tokens are the prompt's."""
    @property
    def truncated(self) -> bool:
        """Tokens of the prompt were left out."""
    @property
    def tuco(self) -> Floats:
        """TuCo of every token, `[tokens]`."""
    @property
    def beta_per_layer(self) -> Floats:
        """The contribution after each layer, `[tokens, layers]`."""
    @property
    def attention_per_layer(self) -> Floats:
        """That of attention alone, `[tokens, layers]`."""
    @property
    def mlp_per_layer(self) -> Floats:
        """That of the MLPs alone, `[tokens, layers]`."""
    @property
    def ptc_l1(self) -> Floats:
        """L1 norm of the summed contributions of pre-training after each layer, `[tokens, layers]`."""
    @property
    def ftc_l1(self) -> Floats:
        """L1 norm of the summed contributions of fine-tuning after each layer, `[tokens, layers]`."""
    @property
    def pt_logits(self) -> Floats | None:
        """What pre-training's part of the last token's final state adds to the logits, `[vocabulary]`; `None` where the model
        has no head that can be read."""
    @property
    def ft_logits(self) -> Floats | None:
        """What fine-tuning's part adds."""
