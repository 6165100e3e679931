"""The reference of all routes, made from the OpenAPI schema: as Markdown
(docs/http.md) and as a page (/docs).

`scripts/http-docs` writes the former.
"""

from __future__ import annotations

import html
from typing import Any

from ..diffusion.params import plain
from .limits import table

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;"
    "color:#222;background:#fff}"
    "table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}"
    "td,th{border:1px solid #ccc;padding:.3rem .6rem;text-align:left;vertical-align:top}"
    "code{font-family:ui-monospace,monospace}h2{margin-top:2.5rem}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#555}a{color:#8bf}}"
)
_INTRO = """\
A request with a body needs the header `content-type: application/json`. Others are refused with 415, so that
no page of another site can send one unasked. Only `/api/*` also takes JSON without a content type or with
that of `curl -d` (`application/x-www-form-urlencoded`), as Ollama's clients send it, and only where neither
`Origin` nor a `Sec-Fetch-` header says that a browser sends it.

What answers GET answers HEAD, and 405 names in `allow` what a path takes. A target may be a whole URL; its
host, too, must be one of the server's. Content-Length beside Transfer-Encoding is 400, and the connection is
closed. A client that closes its sending side before the answer has come counts as gone, and what it asked for
is cancelled: on the wire nothing tells it from one that has left, whose answer would go on for nobody. Keep
the connection open until the answer is there (`nc` without `-N`).

A server that is told to end finishes its answers for `--drain-seconds`; then a whole answer becomes a 503
and a stream ends with an error, code `shutting_down`. If the engine itself stops, `/health` is 503 and says
why.

Embeddings: there are none, and `/v1/embeddings`, `/api/embed` and the like are 404. The model was trained to
write, not to place texts near each other; a mean of its states would look like an embedding and rank badly.
Run an embedding model beside it, in a server of its own (`llama-server --embedding`, Ollama), and give its
address to the retrieval part of your client.

Errors are `{"error": {"message", "type", "param", "code"}}`, inside a stream too; `/v1/messages` and `/api`
word errors as Anthropic and Ollama do. A field that is not known is ignored and named in the answer's
`warnings`, as is an answer without any text (`"code": "empty_answer"`; in a stream, with what ends it), a
tool call that was damaged and has been healed (`healed_tool_call`), and one of what is no tool of the
request, which stays in the text as the model wrote it (`unknown_tool`); a field that is known and cannot be
served is refused with 400 and its name in `param`. With a key set, send it as `Authorization: Bearer KEY` or
`x-api-key: KEY`.

Adapters: `model` is the served model's name (with or without an owner before it and `:latest` behind it), or
that of one of its adapters (`serve --adapter NAME=FOLDER`), or nothing, which is the model; any other name is
404 and told which there are, unless the server runs with `--any-model`. Answers of the model and of several
adapters are written side by side, each as it is alone. `/v1/models` has them all, adapters with their
`parent`. llama-server's way is `"lora": [{"id": 0, "scale": 0.5}]` with the numbers of `/lora-adapters`; that
also sets the scales of requests that say nothing. There, as in `lora`, what is not named is not used, and at
first none is. With `--adapter-dir FOLDER` adapters are loaded while the server runs (`/v1/load_lora_adapter`,
or Ollama's `/api/create`; paths below that folder alone) and unloaded; what is being written with one is
finished with it. With `--adapter-memory` the longest unused of these are dropped, and read again when asked
for. `/metrics` counts them.

Streams hold committed text only, so that it can be appended. Drafts are asked for: with `"diffusing": true`
each content delta is the whole text so far, drafts included, and replaces what came before; with
`"stream_options": {"include_diffusion": true}` chunks with an empty delta carry a `diffusion` object after
every step: `canvas`, `step`, `steps_max`, `state`, `temperature`, `text` (the canvas up to its first EOS),
`pieces` (each place's text), `accepted` and `changed` (a 1 or 0 for each place), `entropy` (nats, for each
place), `mean_entropy`, `stop_reason`; behind a canvas also `reads` (passes of the causal reader) and
`computed` (places, of all its steps).

Beside the reason why an answer ended there may be `finish_details`, a list of `{"reason", "message"}`; the
same are in `warnings`, with the reason as their code. `thinking_budget`: the thought was closed at the
budget. `empty_retried`: the model ended its turn before it said anything, and was made to go on once
(`retry_empty`). `repetition`: two canvases or more repeat one text; with `stop_on_repetition` the answer ends
there, as if its length had been reached. `hole_cut`: a hole before a text was cut at its limit.
A thought's budget is `thinking_budget`, in OpenAI's dialects also
`reasoning_effort` and `reasoning.effort`, in Anthropic's `thinking.budget_tokens` and `output_config.effort`,
in Ollama's a level of `think`; a number wins over a level. The thought's tokens count in the answer's limit.

The same request with the same `seed` gives the same answer, whatever else the server does;
answer number i of `n` has
the seed plus i. An answer names the seed it was made with."""

_LIMITS = """\
A body is JSON in UTF-8. Of keys that are there twice, the last counts; NaN and Infinity are refused; whatever
is not JSON is answered with 400 and the code `invalid_json`. Names in brackets are options of `create_app`,
whose defaults are shown."""


def markdown(schema: dict[str, Any]) -> str:
    """The reference as Markdown."""
    lines = [
        "# HTTP reference",
        "",
        "Made from the OpenAPI schema (`/openapi.json`) by `scripts/http-docs`.",
        "",
        _INTRO,
        "",
        *_limits(),
    ]
    for method, path, operation in operations(schema):
        lines += [f"## {method} {path}", "", operation.get("description", ""), ""]
        rows = fields(schema, operation)
        if rows:
            lines += ["| field | type | |", "|---|---|---|"]
            lines += [
                f"| `{name}`{' *' if needed else ''} | {_cell(kind)} | {_cell(text)} |"
                for name, kind, needed, text in rows
            ]
            lines.append("")
        lines += [f"Answers: {', '.join(sorted(operation['responses']))}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _limits() -> list[str]:
    rows = [f"| {what} | {most:,.10g} | {answer} |" for what, most, answer in table()]
    head = ["## Limits", "", _LIMITS, "", "| what | at most | more is answered with |", "|---|---|---|"]
    return [*head, *rows, ""]


def page(schema: dict[str, Any]) -> str:
    """The reference as a page without scripts."""
    parts = [f"<h1>canvaslm {html.escape(schema['info']['version'])}</h1>"]
    parts += [f"<p>{_inline(paragraph)}</p>" for paragraph in _INTRO.split("\n\n")]
    parts.append('<p>The <a href="/openapi.json">OpenAPI schema</a>.</p>')
    for method, path, operation in operations(schema):
        parts.append(
            f"<h2><code>{method} "
            f"{html.escape(path)}</code></h2><p>{_inline(operation.get('description', ''))}</p>"
        )
        rows = fields(schema, operation)
        if rows:
            cells = "".join(
                f"<tr><td><code>{html.escape(name)}</code>{' *' if needed else ''}</td>"
                f"<td>{html.escape(kind)}</td><td>{_inline(text)}</td></tr>"
                for name, kind, needed, text in rows
            )
            parts.append(f"<table><tr><th>field</th><th>type</th><th></th></tr>{cells}</table>")
        parts.append(f"<p>Answers: {html.escape(', '.join(sorted(operation['responses'])))}.</p>")
    head = f'<meta charset="utf-8"><title>canvaslm</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}{"".join(parts)}</html>'


def operations(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation) of every route."""
    return [
        (method.upper(), path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def fields(schema: dict[str, Any], operation: dict[str, Any]) -> list[tuple[str, str, bool, str]]:
    """(name, type, whether it is needed, description) of the fields of an operation's body."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is None:
        return []
    model = _resolved(schema, body.get("items", body))  # of a list: what it is of
    needed = model.get("required", [])
    return [
        (name, kind_of(schema, field), name in needed, _described(field))
        for name, field in sorted(model.get("properties", {}).items(), key=lambda item: item[0] not in needed)
    ]


def _described(field: dict[str, Any]) -> str:
    own = [field, *field.get("anyOf", [])]
    return next(
        (option["description"] for option in own if "description" in option and "$ref" not in option), ""
    )


def kind_of(schema: dict[str, Any], field: dict[str, Any]) -> str:
    """A field's type in words."""
    if "anyOf" in field:
        return " or ".join(
            dict.fromkeys(kind_of(schema, o) for o in field["anyOf"] if o.get("type") != "null")
        )
    if "$ref" in field:
        return f"object ({', '.join(_resolved(schema, field).get('properties', {}))})"
    if "enum" in field or "const" in field:
        return " or ".join(f'"{value}"' for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {kind_of(schema, field.get('items', {}))}"
    return f"{field.get('type', 'any')}{_range(field)}"


def _range(field: dict[str, Any]) -> str:
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum")
    if low is None and high is None:
        return ""
    return f" {_number(low)}..{_number(high)}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    exact = isinstance(value, int) or abs(value) < 2**53
    return plain(value) if exact else f"{value:g}"


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        node = schema["components"]["schemas"][name]
    return node


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _inline(text: str) -> str:
    """Escaped, with `code` set as code."""
    parts = html.escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


__all__ = ["PAGE_POLICY", "fields", "kind_of", "markdown", "operations", "page"]
