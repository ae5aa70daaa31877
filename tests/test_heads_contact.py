"""The contact regression against scikit-learn and against the head that applies it."""

import numpy as np
import pytest
import torch

from proteinlm.errors import InputError
from proteinlm.heads.contact import contact_labels, fit_contact_regression, pair_features
from proteinlm.models.contacts import ContactHead


def maps_and_contacts(proteins: int, heads: int, seed: int = 0) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """Attention maps of which two know the contacts, a little noisily; -1 where the structure is missing."""
    random = np.random.default_rng(seed)
    maps, contacts = [], []
    for length in random.integers(25, 50, proteins):
        near = random.random((length, length)) < 0.1
        near = near | near.T
        attention = random.random((heads, length, length))
        attention[1] += 0.6 * near
        attention[4] += 0.4 * np.triu(near)
        maps.append(torch.from_numpy(attention / attention.sum(2, keepdims=True)).float())
        labels = near.astype(np.int64)
        labels[2], labels[:, 2] = -1, -1
        contacts.append(labels)
    return maps, contacts


def naive_pairs(maps: list[torch.Tensor], contacts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The same features by a loop over pairs."""
    rows, labels = [], []
    for one, known in zip(maps, contacts, strict=True):
        a = one.double().numpy()
        a = a + a.transpose(0, 2, 1)
        for i in range(len(known)):
            for j in range(i + 6, len(known)):
                if known[i, j] >= 0:
                    rows.append([m[i, j] - m[i].sum() * m[:, j].sum() / m.sum() for m in a])
                    labels.append(known[i, j])
    return np.array(rows), np.array(labels)


@pytest.mark.parametrize("strength", [0.15, 3.0])
def test_equals_scikit_learn(strength: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    maps, contacts = maps_and_contacts(3, 6)
    # Maps of rows that sum to 1 hold small numbers; scikit-learn's saga converges faster on larger ones.
    maps = [one * 20 for one in maps]
    found = fit_contact_regression(maps, contacts, strength, tolerance=1e-8)
    x, y = naive_pairs(maps, contacts)
    assert (found.pairs, found.contacts, found.proteins) == (len(y), y.sum(), 3)
    judge = linear_model.LogisticRegression(C=1 / strength, l1_ratio=1.0, solver="saga", tol=1e-9, max_iter=20_000)
    judge.fit(x, y)
    np.testing.assert_allclose(found.weight_M, judge.coef_[0], atol=1e-4)
    assert found.bias == pytest.approx(judge.intercept_[0], abs=1e-4)
    assert found.weight_M[1] > 1 and found.weight_M[4] > 0.5
    if strength == 3.0:
        assert (found.weight_M.numpy() == 0).sum() == (judge.coef_[0] == 0).sum() >= 1, "the penalty makes it sparse"


def test_what_is_fitted_is_what_the_contact_head_applies() -> None:
    maps, contacts = maps_and_contacts(4, 6, seed=2)
    found = fit_contact_regression(maps, contacts)
    head = ContactHead(num_layers=2, num_heads=3)
    with torch.no_grad():
        head.weight.copy_(found.weight_M.view(2, 3))
        whole = sum(head.contribution(maps[0][3 * layer : 3 * layer + 3], layer) for layer in range(2)) + found.bias
    i, j = torch.triu_indices(len(whole), len(whole), 6)
    ours = pair_features(maps[0]) @ found.weight_M + found.bias
    torch.testing.assert_close(ours, whole[i, j], atol=1e-4, rtol=1e-4)
    known = torch.from_numpy(contacts[0])[i, j]
    assert ours[known == 1].mean() > ours[known == 0].mean() + 1


def test_shuffled_contacts_leave_nothing_to_find() -> None:
    maps, contacts = maps_and_contacts(4, 6, seed=3)
    random = np.random.default_rng(4)
    dealt = [random.permutation(one.reshape(-1)).reshape(one.shape) for one in contacts]
    real, control = fit_contact_regression(maps, contacts, 5.0), fit_contact_regression(maps, dealt, 5.0)
    assert real.weight_M.abs().sum() > 20 * control.weight_M.abs().sum()


def test_bad_input_is_refused() -> None:
    maps, contacts = maps_and_contacts(1, 6)
    for bad_maps, bad_contacts, message in (
        ([maps[0][:, :5]], contacts, "contacts of shape"),
        (maps, [contacts[0][:5, :5]], "contacts of shape"),
        (maps, [np.zeros_like(contacts[0])], "0 contacts among"),
    ):
        with pytest.raises(InputError, match=message):
            fit_contact_regression(bad_maps, bad_contacts)


def test_labels_of_near_pairs_become_unknown() -> None:
    labels = contact_labels(np.ones((10, 10), int))
    assert labels[0, 5] == -1 and labels[0, 6] == 1 and labels[6, 0] == 1 and (labels == labels.T).all()
