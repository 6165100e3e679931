"""The shipped tokenizer, template and configuration."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvaslm.demo.build_tokenizer import MARKERS, build
from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.demo.stream import Encoder
from canvaslm.demo.tasks import TASKS
from canvaslm.model.diffusion_gemma import DiffusionGemmaConfig
from canvaslm.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(MODEL_FOLDER)


def test_rebuilding_gives_the_shipped_files(tmp_path: Path) -> None:
    build(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        assert (tmp_path / name).read_text() == (MODEL_FOLDER / name).read_text(), name


def test_1024_entries_with_the_usual_ids_and_markers() -> None:
    assert TOKENIZER.vocab_size == 1024
    assert (TOKENIZER.pad_id, TOKENIZER.eos_id, TOKENIZER.bos_id, TOKENIZER.unk_id) == (0, 1, 2, 3)
    assert all(TOKENIZER.marker_id(marker) is not None for marker in MARKERS)


# U+2581 stands for a space, in Gemma's tokenizer as in this one: a literal one comes back as a space.
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_markers_in_plain_text_are_text() -> None:
    ids = TOKENIZER.encode("a<turn|>b<eos>")
    assert TOKENIZER.decode(ids) == "a<turn|>b<eos>"
    assert not any(TOKENIZER.is_control(i) for i in ids)


@pytest.mark.parametrize(
    "text", ["0123456789", "1024", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "THEHORSE", "\n\n\n", "....", "1.3."]
)
def test_digits_capitals_newlines_and_dots_are_single_tokens(text: str) -> None:
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode(text)] == list(text)


def test_letters_of_a_word_are_the_same_tokens_in_prompt_and_answer() -> None:
    prompt, answer = TOKENIZER.encode("Reverse: PLANET"), TOKENIZER.encode("TENALP")
    assert prompt[-6:] == answer[::-1]


def test_words_of_the_tasks_are_few_tokens() -> None:
    rng = Random(0)
    texts = [
        TASKS[name].sample(rng).messages[0]["content"]
        for name in ("functions", "capitals", "blanks")
        for _ in range(50)
    ]
    assert sum(len(TOKENIZER.encode(t)) for t in texts) < 0.5 * sum(map(len, texts))


def test_config_is_the_model_of_the_model_card() -> None:
    config = DiffusionGemmaConfig.from_dict(json.loads((MODEL_FOLDER / "config.json").read_text()))
    assert (config.vocab_size, config.hidden_size, config.canvas_length) == (1024, 128, 64)
    assert [config.is_sliding(i) for i in range(config.num_layers)] == [True] * 5 + [False]
    assert (config.head_dim_of(0), config.head_dim_of(5), config.kv_heads_of(5)) == (32, 64, 1)
    assert (config.num_experts, config.top_k_experts) == (8, 2)
    assert config.eos_token_ids == (1, TOKENIZER.marker_id("<turn|>"))


def test_transformers_reads_the_folder_and_renders_the_same_prompts() -> None:
    transformers = pytest.importorskip("transformers")
    from canvaslm.demo.stream import encode_example, example_at

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_FOLDER)
    encoder = Encoder()
    for index in range(200):
        example = example_at(11, index)
        prompt, response = encode_example(example, encoder)
        theirs = tokenizer.apply_chat_template(
            list(example.messages), add_generation_prompt=True, enable_thinking=bool(example.thought)
        )
        assert list(theirs["input_ids"]) == prompt
        assert tokenizer.decode(response, skip_special_tokens=True).endswith(example.answer)
    config = transformers.AutoConfig.from_pretrained(MODEL_FOLDER)
    assert config.canvas_length == 64
    assert config.text_config.per_layer_config[5].head_dim == 64


def test_template_keeps_gemma4s_rules() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_FOLDER)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": "x"}}}
    messages = [
        {"role": "system", "content": " be brief "},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<|channel>thought\nhm\n<channel|>yes"},
        {"role": "user", "content": [{"type": "text", "text": "again"}]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "f", "content": "ok"},
    ]
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
    }
    text = tokenizer.apply_chat_template(
        messages, tools=[tool], enable_thinking=True, add_generation_prompt=True, tokenize=False
    )
    assert text == (
        "<bos><|turn>system\n<|think|>\nbe brief"
        '<|tool>declaration:f{description:<|"|>d<|"|>,parameters:{type:<|"|>object<|"|>}}<tool|><turn|>\n'
        "<|turn>user\nq<turn|>\n<|turn>model\nyes<turn|>\n<|turn>user\nagain<turn|>\n"
        '<|turn>model\n<|tool_call>call:f{a:1,b:<|"|>x<|"|>}<tool_call|>'
        '<|tool_response>response:f{value:<|"|>ok<|"|>}<tool_response|>'
    )
