"""The loop on a tiny model: resume is exact, one batch is learned by heart, checkpoints are whole."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from canvaslm.engine.reference import generate
from canvaslm.errors import BadModelFile, UsageError, WriteFailed
from canvaslm.train.checkpoint import checkpoints
from canvaslm.train.data import Source
from canvaslm.train.report import Reporter
from canvaslm.train.settings import Settings, settings_from_dict
from canvaslm.train.setup import initialise
from canvaslm.train.sft import Export, Trainer
from canvaslm.types import Params
from canvaslm.weights.loading.load import load_model
from tests.full_disk import full_disk
from tests.tiny import tiny_model

EOS = 1
STEPS = 160


class Repeat:
    """Twelve examples: the prompt names a word and a count, the answer repeats it; some need two canvases."""

    def example(self, seed: int, index: int) -> tuple[list[int], list[int]]:
        word, more = 10 + index % 4, index % 3
        return [2, word, 20 + more, 6], [word] * (2 + 5 * more) + [7]


def settings(folder: Path, **changes: Any) -> Settings:
    data: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "steps": 6, "checkpoint_every": 3, "log_every": 2, "keep": 9},
        "model": {"base": "unused"},
        "data": {"source": "unused", "batch": 6, "micro_batch": 3},
        "objective": {"freeze_router": False, "aux_weight": 0.01},
        "optim": {"lr": 3e-3, "muon_lr": 0.02, "warmup": 2, "ema": 0.9},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        data[section][name] = value
    return settings_from_dict(data)


def trainer(
    folder: Path, export: Export | None = None, source: Source | None = None, **changes: Any
) -> Trainer:
    model = tiny_model(1)
    initialise(model)
    return Trainer(model, source or Repeat(), settings(folder, **changes), export=export)


def quiet() -> Reporter:
    return Reporter(None, io.StringIO())


def weights(made: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made.model.state_dict().items()}


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole = trainer(tmp_path / "whole")
    assert whole.run(quiet()) == "finished"
    torch.manual_seed(6)  # resuming must not depend on torch's global stream
    part = trainer(tmp_path / "part")
    with torch.no_grad():
        for parameter in part.model.parameters():
            parameter.zero_()
    assert part.resume(tmp_path / "whole" / "step-00000003")
    assert part.step == 3
    part.run(quiet())
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(part)[name]), name
    assert whole.average is not None
    assert part.average is not None
    for name, value in whole.average.tensors.items():
        assert torch.equal(value, part.average.tensors[name]), name


def test_a_resumed_step_repeats_time_noise_block_and_coin(tmp_path: Path) -> None:
    first, again = trainer(tmp_path), trainer(tmp_path)
    first.train_step()
    batches, others = first.batcher.step(1), again.batcher.step(1)
    for micro, (one, two) in enumerate(zip(batches, others, strict=True)):
        assert torch.equal(one.canvas_positions, two.canvas_positions)
        left, right = (made.objective.draw(one, 0, 1, micro) for made in (first, again))
        assert torch.equal(left.t, right.t)
        assert torch.equal(left.canvas, right.canvas)
        assert torch.equal(left.coin, right.coin)


def test_one_batch_is_learned_by_heart_and_the_sampler_reproduces_it(tmp_path: Path) -> None:
    model = tiny_model(1, hidden_size=32, moe_intermediate_size=16, sliding_window=16)
    initialise(model)
    changes = {"data__batch": 12, "data__micro_batch": 12, "optim__lr": 1e-2, "optim__muon_lr": 0.03}
    made = Trainer(
        model, Repeat(), settings(tmp_path, run__steps=STEPS, optim__ema=0.0, optim__final=0.0, **changes)
    )
    for _ in range(STEPS):
        made.train_step()
    model.eval()
    params = Params(max_new_tokens=16, max_denoising_steps=16, seed=3)
    for index in range(12):
        prompt, response = Repeat().example(0, index)
        tokens, _ = generate(model, prompt, params, (EOS, 7))
        assert tokens == response


def test_the_export_holds_the_average_and_training_goes_on_unchanged(tmp_path: Path) -> None:
    seen = []
    made = trainer(
        tmp_path, export=lambda model: seen.append({n: v.clone() for n, v in model.state_dict().items()})
    )
    for _ in range(2):
        made.train_step()
    before = weights(made)
    made.checkpoint()
    assert made.average is not None
    assert all(torch.equal(seen[0][n], v) for n, v in made.average.tensors.items())
    assert all(torch.equal(before[n], v) for n, v in weights(made).items())
    assert not torch.equal(seen[0]["norm.weight"], before["norm.weight"])


def test_only_the_newest_checkpoints_are_kept_and_parts_are_not_checkpoints(tmp_path: Path) -> None:
    made = trainer(tmp_path, run__checkpoint_every=1, run__keep=2)
    (tmp_path / ".step-00000099.part").mkdir()
    (tmp_path / "step-00000098").mkdir()
    made.run(quiet())
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000005", "step-00000006"]


def test_checkpoints_are_safetensors_and_json_alone(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.train_step()
    files = sorted(path.name for path in made.checkpoint().iterdir())
    assert files == ["average.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).checkpoint()
    other = Trainer(tiny_model(0, hidden_size=32), Repeat(), settings(tmp_path))
    with pytest.raises(BadModelFile, match="resume with the settings"):
        other.resume()


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert not trainer(tmp_path).resume()


def test_sigterm_ends_the_run_after_the_step_with_a_checkpoint(tmp_path: Path) -> None:
    class Ending(Repeat):
        def example(self, seed: int, index: int) -> tuple[list[int], list[int]]:
            if index == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().example(seed, index)

    made = trainer(tmp_path, source=Ending())
    before = signal.getsignal(signal.SIGTERM)
    assert made.run(quiet()) == "stopped by SIGTERM"
    assert made.step == 2
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_metrics_are_lines_of_json_and_plain_text_without_a_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    with Reporter(tmp_path / "metrics.jsonl", out) as reporter:
        trainer(tmp_path).run(reporter)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[-1]["left"] == 0
    assert all(row["loss"] == pytest.approx(row["canvas"] + row["encoder"]) for row in rows)
    assert out.getvalue().count("tok/s") == 3
    assert "\x1b" not in out.getvalue()


def test_the_clock_ends_a_run_and_drives_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("canvaslm.train.sft.time.monotonic", lambda: now[0])
    made = trainer(tmp_path, run__steps=0, run__max_minutes=10)
    now[0] += 300
    assert made.progress == pytest.approx(0.5)
    made.checkpoint()
    later = trainer(tmp_path, run__steps=0, run__max_minutes=10)
    now[0] += 5000  # time between sessions does not count
    later.resume()
    assert later.progress == pytest.approx(0.5)
    now[0] += 300
    assert later.run(quiet()) == "finished"
    assert later.step == 0


def test_a_model_without_eos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="eos_token_id"):
        Trainer(tiny_model(0, eos_token_ids=()), Repeat(), settings(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler touches whatever it finds, and warns of it
def test_compiling_changes_speed_only(tmp_path: Path) -> None:
    losses = []
    for fast in (False, True):
        model = tiny_model(1, num_layers=1, layer_types=("full_attention",))
        changes = {"run__compile": fast, "objective__self_conditioning": 0.0, "data__length_multiple": 32}
        made = Trainer(model, Repeat(), settings(tmp_path, **changes))
        losses.append([made.train_step()[0]["loss"] for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_from_scratch_to_a_folder_that_loads(tmp_path: Path) -> None:
    """`make_trainer` reads config.json, trains, and exports a folder of the averaged weights in bf16."""
    from canvaslm.train.setup import make_trainer
    from tests.tiny import tiny_config

    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config().to_dict()))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"t_min": 0.3}')
    base = settings(tmp_path / "run", data__source=f"{__name__}:Repeat")
    made = make_trainer(replace(base, model=replace(base.model, base="", config=str(folder))))
    made.run(quiet())
    with pytest.raises(UsageError, match=r"lora.rank: adapters are trained by canvaslm finetune"):
        make_trainer(replace(base, lora=replace(base.lora, rank=2)))
    loaded = load_model(tmp_path / "run" / "export")
    assert loaded.generation["t_min"] == 0.3
    assert (tmp_path / "run" / "export" / "tokenizer.json").read_text() == "{}"
    assert made.average is not None
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, made.average.tensors[name].bfloat16().float()), name
    again = make_trainer(
        settings(
            tmp_path / "more", model__base=str(tmp_path / "run" / "export"), data__source=f"{__name__}:Repeat"
        )
    )
    assert all(torch.equal(v, again.model.state_dict()[n]) for n, v in loaded.model.state_dict().items())


def test_a_full_disk_leaves_the_checkpoints_that_were_there(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.train_step()
    first = made.checkpoint()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    made.train_step()
    for _ in range(2):  # the second time over a checkpoint of the same step
        with full_disk(), pytest.raises(WriteFailed, match=r"step-0000000\d: cannot be written \(File too"):
            made.checkpoint()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert checkpoints(tmp_path) == [first]
        made.step = 1
    assert trainer(tmp_path).resume()


def test_a_checkpoint_of_the_same_step_is_replaced_only_by_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path)
    made.train_step()
    first = made.checkpoint()
    real = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="Input/output"):
            made.checkpoint()
    assert checkpoints(tmp_path) == [first]
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert made.checkpoint() == first
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_metrics_that_do_not_fit_are_one_error(tmp_path: Path) -> None:
    made = trainer(tmp_path, run__log_every=1)
    refused = pytest.raises(WriteFailed, match=r"metrics\.jsonl: cannot be written")
    with full_disk(10), refused, Reporter(tmp_path / "metrics.jsonl", io.StringIO()) as reporter:
        made.run(reporter)
