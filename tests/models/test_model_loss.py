"""The loss: conventions for labels, pieces for large vocabularies, division over accumulated batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plait.models import loss as module
from plait.models.loss import cross_entropy, shifted


@pytest.fixture
def model(build):
    return build("gated_deltanet", "attention")


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def labelled(tokens) -> torch.Tensor:
    labels = tokens(3, 8, seed=4)
    labels[0, :3] = -100
    labels[2, 6] = -100
    return labels


def test_labels_are_shifted_inside(model, tokens) -> None:
    ids, labels = tokens(3, 8), labelled(tokens)
    output = model(ids, labels=labels)
    expected = F.cross_entropy(output.logits[:, :-1].reshape(-1, 61), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(output.loss, expected)


def test_shift_labels_are_aligned(model, tokens) -> None:
    ids, labels = tokens(3, 8), labelled(tokens)
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    expected = model(ids, labels=labels).loss
    torch.testing.assert_close(model(ids, shift_labels=targets).loss, expected)
    torch.testing.assert_close(model(ids, labels=labels, shift_labels=targets).loss, expected)


def test_shifting_stops_at_documents() -> None:
    labels = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert shifted(labels).tolist() == [[2, 3, 4, -100], [6, 7, 8, -100]]
    assert shifted(labels, torch.tensor([0, 1, 4, 8])).tolist() == [[-100, 3, 4, -100], [6, 7, 8, -100]]
    assert labels.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("piece", [1, 61 * 4 * 5, 10**9])
def test_pieces_equal_the_whole(model, tokens, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    ids, labels = tokens(3, 8), labelled(tokens)
    plain = model(ids, labels=labels)
    plain.loss.backward()
    expected = gradients(model)
    monkeypatch.setattr(module, "PLAIN_BYTES", 0)
    monkeypatch.setattr(module, "PIECE_BYTES", piece)
    pieces = model(ids, labels=labels, skip_logits=True)
    pieces.loss.backward()
    torch.testing.assert_close(pieces.loss, plain.loss)
    assert pieces.logits is None
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])
    kept = model(ids, labels=labels, logits_to_keep=2)
    torch.testing.assert_close(kept.logits, plain.logits[:, -2:])
    torch.testing.assert_close(kept.loss, plain.loss)


def test_evaluation_returns_large_logits_and_training_does_not(model, tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, labels = tokens(3, 8), labelled(tokens)
    plain = model(ids, labels=labels)
    monkeypatch.setattr(module, "PLAIN_BYTES", 0)
    monkeypatch.setattr(module, "PIECE_BYTES", 61 * 4 * 5)
    large = model(ids, labels=labels)
    assert torch.equal(large.logits, plain.logits)
    torch.testing.assert_close(large.loss, plain.loss)
    model.train()
    assert model(ids, labels=labels).logits is None
    assert torch.equal(model(ids, labels=labels, skip_logits=False).logits, plain.logits)


def test_large_logits_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLAIN_BYTES", 1000)
    monkeypatch.setattr(module, "PIECE_BYTES", 5 * 7 * 4)
    head, widest = torch.nn.Linear(4, 7), []
    cross_entropy(
        lambda h: (widest.append(len(h)), head(h))[1], torch.randn(40, 4), torch.zeros(40).long(), vocab_size=7
    ).backward()
    assert set(widest) == {5}
    assert len(widest) == 16  # eight pieces, each made again for the backward pass
    assert head.weight.grad.abs().sum() > 0


def test_bf16_logits_are_summed_in_fp32(build, tokens) -> None:
    model = build("attention", dtype=torch.bfloat16)
    ids = tokens(3, 8)
    output = model(ids, labels=ids)
    assert output.loss.dtype == torch.float32
    expected = F.cross_entropy(output.logits[:, :-1].reshape(-1, 61).float(), ids[:, 1:].reshape(-1))
    assert torch.equal(output.loss, expected) or abs(output.loss - expected) < 1e-6


def test_no_target_gives_zero_and_not_nan(model, tokens) -> None:
    output = model(tokens(1, 4), labels=torch.full((1, 4), -100))
    output.loss.backward()
    assert output.loss == 0
    assert all(not gradient.any() for gradient in gradients(model).values())


@pytest.mark.parametrize("count", [19, torch.tensor(19)])
def test_accumulated_batches_add_up(model, tokens, count) -> None:
    ids, labels = tokens(3, 8), labelled(tokens)
    labels[2, 7] = -100
    assert int((labels[:, 1:] != -100).sum()) == 17
    whole = model(ids, labels=labels, num_items_in_batch=17).loss
    torch.testing.assert_close(whole, model(ids, labels=labels).loss)
    parts = [model(ids[rows], labels=labels[rows], num_items_in_batch=count).loss for rows in ([0], [1, 2])]
    torch.testing.assert_close(sum(parts), whole * 17 / 19)
