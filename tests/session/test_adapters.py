"""Adapters by name: every way to ask takes them, they come from files, and memory is bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import canvaslm
from canvaslm.errors import BadModelFile, NotFound, UsageError
from canvaslm.model.adapters import Adapter, WeightDelta
from canvaslm.session import Session
from canvaslm.weights.adapters.gguf import write_gguf_adapter
from canvaslm.weights.adapters.peft_write import write_peft
from tests.adapters import random_adapter
from tests.server.world import tiny_folder, tiny_session
from tests.tiny import tiny_model, write_tiny_gguf


@pytest.fixture(scope="module")
def session() -> Session:
    """With two adapters, "one" and "two"."""
    made = tiny_session()
    for seed, name in enumerate(("one", "two"), 1):
        made.adapters.add(name, random_adapter(made.engine.runner.model, seed=seed))
    return made


def written(session: Session, folder: Path, seed: int) -> Path:
    """A folder with a random adapter for the session's model."""
    model = session.engine.runner.model
    return write_peft(random_adapter(model, seed=seed), folder, model.config)


def _generate(session: Session, **options: Any) -> Any:
    return session.generate("Hello", seed=3, **options).tokens


def _stream(session: Session, **options: Any) -> Any:
    return "".join(getattr(event, "text", "") for event in session.stream("Hello", seed=3, **options))


def _many(session: Session, **options: Any) -> Any:
    return [reply.tokens for reply in session.generate_many(["Hello", "there"], seed=3, **options)]


def _fill(session: Session, **options: Any) -> Any:
    return session.fill("a <hole max=6> b <hole max=4>", seed=3, **options).text


def _edit(session: Session, **options: Any) -> Any:
    return session.edit("one two three", [(4, 7)], "write", seed=3, max_new_tokens=6, **options).text


def _decide(session: Session, **options: Any) -> Any:
    asked = canvaslm.choice("Which?", ["red", "green", "blue"])
    return session.decide("A state", asked, **options)[0].probabilities


def _decide_causally(session: Session, **options: Any) -> Any:
    return _decide(session, reader="causal", **options)


def _score(session: Session, **options: Any) -> Any:
    return session.score("Hello", "over there", **options).logprob


WAYS = [_generate, _stream, _many, _fill, _edit, _decide, _decide_causally, _score]


@pytest.mark.parametrize("ask", WAYS, ids=lambda ask: str(ask.__name__))
def test_every_way_to_ask_takes_an_adapter(session: Session, ask: Callable[..., Any]) -> None:
    plain, one, two = ask(session), ask(session, adapter="one"), ask(session, adapter=[("two", 1.0)])
    assert plain != one and one != two and two != plain
    assert ask(session) == plain  # what is remembered of one is not another's
    assert ask(session, adapter=["one"]) == one
    assert ask(session, adapter=[("one", 0.0)]) == plain


def test_several_add_up(session: Session) -> None:
    both = _generate(session, adapter=["one", ("two", 0.5)])
    assert both not in (_generate(session, adapter="one"), _generate(session, adapter="two"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (7, "adapter should be a name"),
        ([7], "found 7 in it"),
        ([("one",)], "adapter should be"),
        ([("one", "much")], "should be a finite number, found 'much'"),
        ([("one", float("nan"))], "finite"),
        (["one"] * 17, "use 16 at most"),
    ],
)
def test_what_is_no_adapter_is_an_error(session: Session, given: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        session.generate("Hello", adapter=given)


def test_an_unknown_name_is_answered_with_the_known_ones(session: Session) -> None:
    with pytest.raises(NotFound, match="no adapter 'three': known are one, two"):
        session.generate("Hello", adapter="three")
    with pytest.raises(NotFound, match="none is loaded"):
        tiny_session().adapters.use("one")


def test_names_are_taken_once_and_not_the_models(session: Session) -> None:
    adapter = random_adapter(session.engine.runner.model)
    for name, told in (("one", "already"), ("tiny", "own name"), ("", "1 to 128"), ("a\nb", "printable")):
        with pytest.raises(UsageError, match=told):
            session.adapters.add(name, adapter)
    assert session.adapters.names == ("one", "two")


def test_what_does_not_fit_the_model_is_refused(session: Session) -> None:
    other = tiny_model(0, hidden_size=32)
    with pytest.raises(UsageError, match="misfit: the adapter does not fit"):
        session.adapters.add("misfit", random_adapter(other))
    assert "misfit" not in session.adapters.names


def test_one_that_was_never_trained_gives_the_models_answers(session: Session) -> None:
    fresh = random_adapter(session.engine.runner.model)
    side = {name: WeightDelta(d.a, d.b * 0, d.scale) for name, d in fresh.denoise.items()}
    session.adapters.add("fresh", Adapter(side, side))
    assert _generate(session, adapter="fresh") == _generate(session)
    assert next(one for one in session.adapters.shelf if one.name == "fresh").nbytes == 0
    session.adapters.unload("fresh")


def test_files_give_what_was_written(tmp_path: Path) -> None:
    session = tiny_session()
    session.adapters.add("memory", random_adapter(session.engine.runner.model, seed=1))
    session.adapters.load("file", written(session, tmp_path / "one", 1))
    assert _generate(session, adapter="file") == _generate(session, adapter="memory")
    with pytest.raises(NotFound, match="adapter_config"):
        session.adapters.load("other", tmp_path)
    (tmp_path / "one" / "adapter_config.json").write_text("{")
    with pytest.raises(BadModelFile):
        session.adapters.load("other", tmp_path / "one")


@pytest.mark.parametrize("packed", [False, True])
def test_a_gguf_file_gives_what_was_written(tmp_path: Path, packed: bool) -> None:
    source = tiny_model(vocab_size=1024, hidden_size=256, intermediate_size=160, moe_intermediate_size=96)
    path = write_tiny_gguf(source, tmp_path / "m.gguf", "Q8_0")
    with canvaslm.load(path, dtype=None if packed else "float32") as session:
        model = session.engine.runner.model
        adapter = random_adapter(model, sides="equal")
        scales: dict[str, Any] = {
            name: value for name, value in source.named_parameters() if name.endswith("per_expert_scale")
        }
        session.adapters.add("memory", adapter)
        write_gguf_adapter(adapter, tmp_path / "a.gguf", session.engine.config, scales)
        session.adapters.load("file", tmp_path / "a.gguf")
        kept, read = (next(o for o in session.adapters.shelf if o.name == n) for n in ("memory", "file"))
        assert kept.adapter is not None
        assert read.adapter is not None
        for name, delta in kept.adapter.denoise.items():
            if name.startswith("self_conditioning"):
                continue
            torch.testing.assert_close(
                read.adapter.denoise[name].matrix(), delta.matrix(), rtol=1e-4, atol=1e-5
            )


def test_load_takes_adapters_by_name(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model")
    folder = written(tiny_session(), tmp_path / "one", 1)
    with canvaslm.load(model, adapters={"one": folder}) as session:
        assert _generate(session, adapter="one") != _generate(session)
    with pytest.raises(NotFound, match="missing"):
        canvaslm.load(model, adapters={"one": tmp_path / "missing"})
    with pytest.raises(UsageError, match="adapter_memory = -1"):
        canvaslm.load(model, adapter_memory=-1)
    with pytest.raises(UsageError, match="table of names"):
        canvaslm.load(model, adapters=["one"])  # type: ignore[arg-type]


def test_within_a_limit_the_longest_unused_is_dropped_and_read_again(tmp_path: Path) -> None:
    session, seen = tiny_session(), {}
    shelf = session.adapters
    for seed, name in enumerate("abc", 1):
        written(session, tmp_path / name, seed)
    shelf.load("a", tmp_path / "a")
    shelf.limit = 2 * shelf.nbytes
    shelf.load("b", tmp_path / "b")
    for name in "ba":
        seen[name] = _generate(session, adapter=name)
    shelf.load("c", tmp_path / "c")
    assert {one.name: one.loaded for one in shelf.shelf} == {"a": True, "b": False, "c": True}
    assert shelf.names == ("a", "b", "c") and shelf.nbytes == shelf.limit
    assert _generate(session, adapter="b") == seen["b"]
    assert {one.name: one.loaded for one in shelf.shelf} == {"a": False, "b": True, "c": True}
    assert _generate(session, adapter="a") == seen["a"]


def test_those_of_the_start_stay_and_too_much_is_refused(tmp_path: Path) -> None:
    session = tiny_session()
    shelf = session.adapters
    shelf.load("start", written(session, tmp_path / "a", 1), pinned=True)
    shelf.limit = shelf.nbytes
    with pytest.raises(UsageError, match="are taken for good"):
        shelf.load("more", written(session, tmp_path / "b", 2))
    assert [one.loaded for one in shelf.shelf] == [True]
    shelf.unload("start")
    assert shelf.nbytes == 0
    shelf.load("more", tmp_path / "b")


def test_a_dropped_one_is_not_read_through_a_link(tmp_path: Path) -> None:
    session = tiny_session()
    shelf = session.adapters
    folder = written(session, tmp_path / "a", 1)
    shelf.load("a", folder)
    shelf.limit = shelf.nbytes
    shelf.load("b", written(session, tmp_path / "b", 2))
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotFound, match="is a link now"):
        shelf.use("a")


def test_threads_may_load_use_and_unload_at_once(tmp_path: Path) -> None:
    session, wrong = tiny_session(), []
    shelf = session.adapters
    folder = written(session, tmp_path / "a", 1)
    shelf.load("kept", folder)
    shelf.limit = 2 * shelf.nbytes

    def work(number: int) -> None:
        try:
            for _ in range(10):
                shelf.load(f"mine{number}", folder)
                assert shelf.use(f"mine{number}").adapter.encode_digest
                assert shelf.use("kept").adapter.encode_digest
                shelf.unload(f"mine{number}")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and shelf.names == ("kept",) and shelf.nbytes <= shelf.limit
