"""`canvaslm score`: the log-probability of given texts, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .adapter_options import Adapting
from .fill import print_object
from .given_text import argument_text, exact_text
from .options import Loading, grouped

if TYPE_CHECKING:
    from ..text.scores import Scored


@grouped
def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Texts; - reads one from standard input."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="TEXT", help="A text; several may be given.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="What the texts answer. Without it: nothing."),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system message before the prompt.")
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Without the chat template: texts go on from the prompt."),
    ] = False,
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    loading: Loading = Loading(),
    adapting: Adapting = Adapting(),
) -> None:
    """Print how probable a model finds texts: each token's log-probability in nats, its rank and its place's
    entropy, then the sum, the mean and the perplexity.

    Of several texts, which are read behind the same prompt, a line each.

    Examples:
      canvaslm score essay.txt -m model.gguf
      canvaslm score -p "capital of France" --text Paris --text Rome
      canvaslm score - --json < essay.txt
    """
    texts = [argument_text(one, "--text") for one in text or ()]
    texts += [exact_text(file, "file") for file in files or ()]
    if not texts:
        raise UsageError("there is no text: name a file, or give --text", "text")
    asked = "" if prompt is None else argument_text(prompt, "--prompt")
    said = None if system is None else argument_text(system, "--system")
    session = loading.open(as_object, **adapting.loading())
    options = {"raw": raw or prompt is None, **adapting.chosen()}
    found = session.score_many(asked, texts, system=said, **options)
    if as_object:
        print_object({"model": session.name, "texts": [scored_object(scored) for scored in found]})
    elif len(found) == 1:
        print("\n".join([*token_lines(found[0]), summary(found[0])]))
    else:
        for scored in found:
            print(f"{summary(scored)}  {_shown(scored.text)}")


def token_lines(scored: Scored) -> list[str]:
    """A line for each token, under a heading."""
    rows = [("log-p", "rank", "entropy", "token")]
    for token in scored.tokens:
        known = token.logprob is not None and token.entropy is not None
        figures = (f"{token.logprob:.3f}", str(token.rank), f"{token.entropy:.3f}") if known else ("-",) * 3
        rows.append((*figures, _shown(token.text)))
    return [f"{a:>9}  {b:>7}  {c:>7}  {d}" for a, b, c, d in rows]


def summary(scored: Scored) -> str:
    """The figures of a whole text."""
    count = len(scored.tokens)
    return (
        f"{count} token{'s' * (count != 1)}, log-probability {scored.logprob:.3f}, "
        f"mean {scored.mean:.3f}, perplexity {scored.perplexity:.3f}"
    )


def scored_object(scored: Scored) -> dict[str, Any]:
    """All of it, as plain data."""
    return {
        "text": scored.text,
        "logprob": scored.logprob,
        "mean": scored.mean,
        "perplexity": scored.perplexity,
        "tokens": [
            {
                "id": token.id, "text": token.text, "logprob": token.logprob, "rank": token.rank,
                "entropy": token.entropy,
            }
            for token in scored.tokens
        ],
        "usage": {
            "prompt_tokens": scored.usage.prompt_tokens, "cached_tokens": scored.usage.cached_tokens,
        },
    }  # fmt: skip


def _shown(text: str) -> str:
    """In one line, its ends to be seen."""
    return repr(text[:60] + ("..." if len(text) > 60 else ""))


__all__ = ["command", "scored_object", "summary", "token_lines"]
