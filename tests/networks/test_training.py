"""The training loop: resume, moving average, best weights, errors; on a network of two weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tqdm import tqdm

from networks.training import LoopSettings, Trainer, fingerprint, warming_decay
from pipeline.errors import StageError


class Line:
    """Task: a line through points that are drawn anew in every step."""

    def __init__(self, fails_at: int = -1, scores: tuple[float, ...] = ()) -> None:
        self.fails_at, self.scores, self.rows = fails_at, scores, []

    def batch(self, step):
        return torch.randn(8, 1, generator=torch.Generator().manual_seed(step)), math.nan if step == self.fails_at else 1.0

    def loss(self, model, batch):
        x, factor = batch
        loss = (model(x) - 3 * x - 1).square().mean() * factor
        return loss, {"square": float(loss.detach())}

    def evaluate(self, model, step, sums, steps):
        assert not model.training
        self.rows.append((step, steps))
        score = self.scores[len(self.rows) - 1] if self.scores else float((model.weight - 3).abs())
        return {"step": step, "mean": sums["square"] / steps}, score

    def not_finite(self, step, names, resume):
        return f"step {step + 1}: {', '.join(names)} is not finite; {resume}"


def trainer_of(path, task=None, mark="mark", steps=20, decay=0.9) -> Trainer:
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    rate = lambda step: 0.1 / (1 + step)  # noqa: E731
    average = None if decay is None else lambda step: warming_decay(decay, step)
    settings = LoopSettings(steps, eval_every=6, grad_clip=1.0, rate=rate, ema_decay=average)
    return Trainer(model, optimiser, task or Line(), settings, path, mark)


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_run_goes_on_bit_identically(tmp_path, monkeypatch):
    whole = trainer_of(tmp_path / "whole.pt")
    best = whole.run()
    monkeypatch.setattr("networks.training.RESUME_EVERY_S", 0.0)

    def stop(step):
        if step in stops:
            stops.remove(step)
            raise KeyboardInterrupt

    stops = {3, 12, 17}
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            trainer_of(tmp_path / "parts.pt").run(on_step=stop)
    parts = trainer_of(tmp_path / "parts.pt")
    again = parts.run()
    assert again["step"] == best["step"] and again["score"] == best["score"] and same(again["weights"], best["weights"])
    assert parts.history == whole.history and same(parts.model.state_dict(), whole.model.state_dict())


def test_every_evaluation_has_a_row_and_the_best_weights_are_kept(tmp_path):
    task = Line(scores=(3.0, 1.0, 2.0, 1.0))
    trainer = trainer_of(tmp_path / "resume.pt", task)
    assert trainer.run()["step"] == 12, "of equal scores the first"
    assert task.rows == [(6, 6), (12, 6), (18, 6), (20, 2)]
    assert [row["step"] for row in trainer.history] == [6, 12, 18, 20]


def test_the_bar_shows_a_score_from_the_first_evaluation_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("networks.training.tqdm", lambda **settings: tqdm(**settings | {"mininterval": 0, "miniters": 1}))
    trainer = trainer_of(tmp_path / "resume.pt", Line(scores=(3.0, 1.0, 2.0, 1.0)))
    trainer.settings = dataclasses.replace(trainer.settings, keep_bar=True)
    trainer.run()
    shown = capsys.readouterr().err
    assert "loss=" in shown and f"{trainer.settings.score_name}=1.000" in shown and "inf" not in shown


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_follows_the_rule(tmp_path, decay):
    trainer = trainer_of(tmp_path / "resume.pt", decay=decay)
    expected = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    for step in range(5):
        trainer.train_step()
        for name, value in trainer.model.state_dict().items():
            expected[name].lerp_(value, 1 - min(decay, (1 + step) / (10 + step)))
    for name, value in trainer.weights().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)


def test_without_an_average_the_weights_are_those_of_the_model(tmp_path):
    trainer = trainer_of(tmp_path / "resume.pt", decay=None)
    trainer.train_step()
    assert same(trainer.weights(), trainer.model.state_dict())


def test_a_loss_that_is_not_finite_stops_with_the_state_before_it(tmp_path):
    with pytest.raises(StageError, match="step 9: square is not finite; .*resume.pt"):
        trainer_of(tmp_path / "resume.pt", Line(fails_at=8)).run()
    saved = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert saved["step"] == 8 and all(torch.isfinite(value).all() for value in saved["model"].values())
    mended = trainer_of(tmp_path / "resume.pt").run()
    assert same(mended["weights"], trainer_of(tmp_path / "other.pt").run()["weights"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no file of tensors", "is not readable"),
        ({"fingerprint": "mark", "epoch": 3}, "is stale, an older version"),
        ({"format": "training 1", "fingerprint": "other"}, "settings or inputs have changed"),
        ([1, 2], "is not readable"),
    ],
)
def test_a_resume_file_of_no_use_is_said(tmp_path, caplog, content, reason):
    path = tmp_path / "resume.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with caplog.at_level("INFO", logger="her2d"):
        found = trainer_of(path).run()
    assert "training starts anew" in caplog.text and reason in caplog.text
    assert same(found["weights"], trainer_of(tmp_path / "other.pt").run()["weights"])


def test_a_fingerprint_depends_on_the_content_and_not_on_its_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
