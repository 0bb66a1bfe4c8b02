"""`check_pair`: verdicts on networks that nobody here trained, and nothing of them changed."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from llfc_core import OwnPair, OwnPairError, Verdicts, check_pair, claims
from llfc_core.check import check_row
from llfc_core.metrics import measure
from llfc_core.own import OwnRow
from llfc_core.pairs import ModePair
from tests.helpers import identical
from tests.own import CLASSES, apart, blobs, line, mlp, pair, three


@pytest.fixture(scope="module")
def verdicts() -> Verdicts:
    given = pair()
    return check_pair(given["a"], given["b"], given["data"], independent=given["independent"])


@pytest.fixture(scope="module")
def matched() -> Verdicts:
    return check_pair(*apart(), match="weight")


# ---- what comes out -----------------------------------------------------------------------------


def test_a_spawned_pair_is_connected_and_its_features_too(verdicts: Verdicts) -> None:
    for name in ("lmc-error", "lmc-loss", "llfc-cosine", "llfc-contrast", "llfc-co-occurrence"):
        assert verdicts[name].holds, verdicts.explain(name)
        assert not verdicts[f"{name} on independent"].holds
    assert [v.claim for v in verdicts] == [c.name for c in claims.ALL]
    assert len(verdicts) == len(claims.ALL)


def test_numbers_are_those_of_measure(verdicts: Verdicts) -> None:
    a, b, *_ = three()
    own = measure(ModePair("given", copy.deepcopy(a), a.state_dict(), b.state_dict()), [blobs(600)])
    ours = verdicts.measurements["linked"][0]
    for name, values in own.values.items():
        np.testing.assert_allclose(ours.values[name], values, atol=1e-9, err_msg=name)
    assert verdicts["llfc-cosine"] == claims.judge(claims.LLFC_COSINE, [ours])


def test_what_was_not_given_is_not_run_and_the_table_says_why(verdicts: Verdicts) -> None:
    a, b, *_ = three()
    alone = check_pair(a, b, blobs(600))
    not_run = {v.claim: v.note for v in alone if v.status == "not run"}
    ranks = dict.fromkeys((c.name for c in claims.LOW_RANK), "no earlier checkpoint of A")
    against = (c.name for c in claims.ALL if c.against_independent)
    assert not_run == ranks | dict.fromkeys(against, "no independent pair")
    assert not set(not_run) & set(alone.unexpected)
    lines = str(alone).splitlines()
    for name, why in not_run.items():
        [row] = [x for x in lines if x.split()[0] == name]
        assert row.endswith(f"not run: {why}")
    assert "nan" not in str(alone)
    assert "undefined" not in str(alone)


def test_table_has_controls_and_verdicts(verdicts: Verdicts) -> None:
    [row] = [x for x in str(verdicts).splitlines() if x.startswith("llfc-cosine")]
    assert "independent" in row
    assert "rejected" in row
    assert row.endswith("holds")


def test_a_mode_before_and_early_in_training_is_for_the_claims_about_rank() -> None:
    initial, early = line()
    a, b, *_ = three()
    found = check_pair(a, b, blobs(), early=early, initial=initial)
    for claim in claims.LOW_RANK:
        assert found[claim.name].status in ("holds", "rejected")
        assert f"{claim.name} on untrained" in found.judged
    without = check_pair(a, b, blobs(), early=early)
    assert without["low-rank-weights"] == found["low-rank-weights"]
    assert "low-rank-weights on untrained" not in without.judged


def test_findings_and_bounds_are_the_user_s() -> None:
    a, b, *_ = three()
    strict = {"llfc-cosine": 1e-9, "llfc-coef": (1e-9, "because")}
    first = check_pair(a, b, blobs(600), bounds=strict)
    assert {"llfc-cosine", "llfc-coef"} <= set(first.unexpected)
    assert "1e-09. because" in first.explain("llfc-coef")
    known = dict.fromkeys(first.unexpected, "known")
    again = check_pair(a, b, blobs(600), bounds=strict, findings=known)
    assert again.unexpected == ()
    assert "finding: llfc-cosine on pair: known" in str(again)
    # What comes to hold is as unexpected.
    loose = {"llfc-cosine": 1.0, "llfc-coef": 10.0}
    assert {"llfc-cosine", "llfc-coef"} <= set(
        check_pair(a, b, blobs(600), bounds=loose, findings=known).unexpected
    )


def test_without_its_premise_a_claim_has_no_verdict() -> None:
    a, _, c = three()
    found = check_pair(a, c, blobs(600))
    assert found["lmc-loss"].status == "rejected"
    assert found["llfc-cosine"].status == "no premise"
    assert "these are not:\nlmc-error" in found.explain("llfc-cosine")
    # Known not to be connected, nothing is unexpected of what presupposes it.
    premise = {"lmc-error": "trained apart", "lmc-loss": "trained apart"}
    assert check_pair(a, c, blobs(600), findings=premise).unexpected == ()


def test_a_premise_that_is_lacking_is_explained_once() -> None:
    a, _, c = three()
    verdicts = check_pair(a, c, blobs())
    lacking = [name for name in verdicts.unexpected if verdicts.judged[name].failing]
    assert len(lacking) > 5
    found = verdicts.explanations()
    assert len(found) == len(verdicts.unexpected) - len(lacking) + 1
    assert all(name in found[-1] for name in lacking)
    assert found[-1].startswith("of linearly connected pairs, which these are not: ")
    required, _ = verdicts.judged[lacking[0]].failing or (None, None)
    assert required is not None
    assert "\n".join(found).count(f"{required.name} (") == 1


def test_a_network_that_is_one_linear_map() -> None:
    a, b = nn.Linear(8, CLASSES).eval(), nn.Linear(8, CLASSES).eval()
    verdicts = check_pair(a, b, blobs(), match="weight")
    (measurement,) = verdicts.measurements["linked"]
    own = float((a.weight - b.weight).detach().square().sum())
    assert measurement.constants["weights"].shape == (1, 3)
    assert np.isclose(measurement.constants["weights"], own, rtol=1e-6).any()


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(OwnPairError, match=r"^a pair has no 'independant': did you mean .*'\?$"):
        check_pair(mlp(0), mlp(1), blobs(), independant=mlp(2))


def test_a_device_that_there_is_not() -> None:
    with pytest.raises(OwnPairError, match=r"^there is no device 'gpu' here: "):
        check_pair(mlp(0), mlp(1), blobs(), device="gpu")


class Torn(Dataset[Any]):
    """Cannot be read to its end."""

    def __len__(self) -> int:
        return 300

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i > 250:
            raise OSError("disk gone")
        return blobs()[0][i], blobs()[1][i]


def test_what_only_a_later_batch_shows_is_one_line_too() -> None:
    x, y = blobs()
    for data, message in (
        (Torn(), r"^OSError: disk gone$"),
        ([(x[:50], y[:50]), (x[50:99, :5], y[50:99])], r"^RuntimeError: .*shapes cannot be mult"),
        ([(x[:50], y[:50]), (x[50:99], y[50:99] + 9)], r"^label \d+ is out of range"),
    ):
        with pytest.raises(OwnPairError, match=message):
            check_pair(mlp(0), mlp(1), data)


def test_the_same_network_twice_is_vacuous() -> None:
    a, *_ = three()
    assert check_pair(a, copy.deepcopy(a), blobs())["lmc-error"].status == "vacuous"


def test_replicates_make_one_row() -> None:
    a, b, c = three()
    row = OwnRow("two", (OwnPair(a, b, blobs(200)), OwnPair(b, a, blobs(250, seed=5))))
    found = check_row(row)
    assert found["lmc-error"].pairs == 2
    assert [m.n for m in found.measurements["linked"]] == [200, 250]
    with pytest.raises(OwnPairError, match="the pairs of one row differ in 'link'"):
        OwnRow("x", (OwnPair(a, b, blobs()), OwnPair(a, b, blobs(), link="spawned")))
    with pytest.raises(OwnPairError, match="differ in what is given of each"):
        OwnRow("x", (OwnPair(a, b, blobs()), OwnPair(a, b, blobs(), independent=c)))


# ---- matching -----------------------------------------------------------------------------------


def test_matching_takes_the_pair_as_it_was_for_its_control(matched: Verdicts) -> None:
    c, d, _ = apart()
    linked, was = (matched.measurements[name][0] for name in ("linked", "independent"))
    assert (linked.link, was.link) == ("weight-matched", "unmatched")
    assert linked.distance < was.distance
    # π(B) computes what B computes: the ends of both lines are the same networks.
    np.testing.assert_allclose(
        linked.values["loss"][[0, -1]], was.values["loss"][[0, -1]], atol=1e-5
    )
    for name in ("matching-dist-w", "matching-dist-h"):
        assert matched[name].holds, matched.explain(name)
        assert not matched[f"{name} on random"].holds
    assert matched["lmc-loss"].value < matched["lmc-loss on independent"].value
    with pytest.raises(OwnPairError, match="leave out independent"):
        check_pair(c, d, blobs(), match="weight", independent=c)


def test_a_permuted_copy_is_found_again() -> None:
    a, *_ = three()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    b = {k: v.clone() for k, v in a.state_dict().items()}
    b["0.weight"], b["0.bias"] = b["0.weight"][order], b["0.bias"][order]
    b["2.weight"] = b["2.weight"][:, order]
    found = check_pair(a, b, blobs(), match="weight")
    assert found.measurements["linked"][0].distance == 0
    assert found.measurements["independent"][0].distance > 0.5


@pytest.mark.parametrize("method", ["activation", "ste"])
def test_matching_on_data_uses_the_training_data(method: str) -> None:
    c, d, data = apart()
    found = check_pair(c, d, data, match=method, train=blobs(400, seed=2))
    assert found.measurements["linked"][0].distance < found.measurements["random"][0].distance


# ---- BatchNorm ----------------------------------------------------------------------------------


def test_running_statistics_are_estimated_anew_too() -> None:
    a, b, c = three(norm=True)
    found = check_pair(a, b, blobs(600), independent=c, train=blobs(500, seed=2))
    plain, again = found.measurements["linked"][0], found.measurements["re-estimated"][0]
    assert again.layers == plain.layers[-1:]
    np.testing.assert_array_equal(again.values["loss"][[0, -1]], plain.values["loss"][[0, -1]])
    assert (again.means()["loss"][0, 1:-1] != plain.means()["loss"][0, 1:-1]).all()
    assert found["lmc-loss-re-estimated"].status in ("holds", "rejected")
    assert "lmc-loss-re-estimated on independent re-estimated" in found.judged


# ---- other tasks --------------------------------------------------------------------------------


class Sequence(nn.Module):
    """Token ids (n, t) → logits (n, t, classes), with a way round every layer."""

    def __init__(self, tokens: int = 6, width: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, tokens)
        self.last = False

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        h = h + self.down(torch.relu(self.up(h.cumsum(dim=1) / 4)))
        return self.head(h).movedim(-1, 1) if self.last else self.head(h)


def sequences(n: int = 20) -> tuple[Tensor, Tensor]:
    x = torch.randint(6, (n, 5), generator=torch.Generator().manual_seed(0))
    y = x.clone()
    y[:, 0] = -100
    return x, y


def a_sequence_pair(**more: Any) -> Verdicts:
    torch.manual_seed(0)
    a, b = Sequence().eval(), Sequence().eval()
    a.last = b.last = more.pop("last", False)
    return check_pair(a, b, sequences(), **more)


def test_sequences_are_judged_place_by_place() -> None:
    found = a_sequence_pair()
    m = found.measurements["linked"][0]
    torch.manual_seed(0)
    a, (x, y) = Sequence().eval(), sequences()
    with torch.no_grad():
        wrong = (a(x).argmax(-1) != y)[:, 1:].double().mean(dim=1)
        loss = nn.functional.cross_entropy(a(x).movedim(-1, 1), y, reduction="none")[:, 1:]
    np.testing.assert_allclose(m.values["error"][-1], wrong)
    np.testing.assert_allclose(m.values["loss"][-1], loss.mean(dim=1), rtol=1e-5)
    assert m.classes == 6
    assert m.dims == (5 * 32, 5 * 6)
    # The embedding goes round the one layer there is.
    assert found["stitching"].note == "no layer that cuts the network in two"


def test_classes_may_be_the_axis_behind_the_data() -> None:
    one, other = a_sequence_pair(), a_sequence_pair(last=True)
    for name in ("error", "loss", "one_minus_cos"):
        np.testing.assert_allclose(
            one.measurements["linked"][0].values[name],
            other.measurements["linked"][0].values[name],
            atol=1e-6,
        )


def test_a_sequential_network_on_token_ids_can_be_stitched() -> None:
    torch.manual_seed(0)
    nets = [
        nn.Sequential(
            *(nn.Embedding(6, 8), nn.Flatten(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3))
        ).eval()
        for _ in range(2)
    ]
    x, _ = sequences()
    found = check_pair(nets[0], nets[1], (x, x[:, 0] % 3))
    m = found.measurements["linked"][0]
    assert not np.isnan(m.values["stitched_error"][0]).any()


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(dim=1)


def regressors(outputs: int = 1) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    a = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, outputs)).eval()
    b = copy.deepcopy(a)
    with torch.no_grad():
        # Units trade places, and move a little: no flat way from A to B.
        for p in (b[0].weight, b[0].bias):  # type: ignore[index]
            p.copy_(p.roll(1, dims=0))
        b[2].weight.copy_(b[2].weight.roll(1, dims=1))  # type: ignore[index]
        for p in b.parameters():
            p += 0.01 * torch.randn_like(p)
        x = torch.randn(100, 8)
        y = a(x) + 0.1 * torch.randn(100, outputs)
    return a, b, (x, y)


def test_a_loss_of_one_s_own_is_measured_against_guessing() -> None:
    a, b, (x, y) = regressors()
    found = check_pair(a, b, (x, y), loss=squared)
    m = found.measurements["linked"][0]
    with torch.no_grad():
        np.testing.assert_allclose(m.values["loss"][-1], squared(a(x), y), rtol=1e-4)
        guess = squared(a(x).mean(dim=0).expand(100, 1), y).mean()
    assert float(m.constants["guessing"][0]) == pytest.approx(float(guess), rel=1e-4)
    assert m.classes == 0
    curve = m.means()["loss"][0]
    chord = np.array(m.alphas) * curve[-1] + (1 - np.array(m.alphas)) * curve[0]
    share = (curve - chord).max() / (float(guess) - (curve[0] + curve[-1]) / 2)
    assert share > 1e-3
    assert found["lmc-loss"].value == pytest.approx(share, rel=1e-3)
    assert found["lmc-loss"].unit == "of the gain"
    assert found["lmc-loss"].bound == claims.LMC_OWN_LOSS.bound


def test_claims_about_errors_are_not_run_where_nothing_is_classified() -> None:
    a, b, data = regressors()
    found = check_pair(a, b, data, loss=squared, independent=b)
    for name in ("lmc-error", "stitching", "lemma1"):
        assert found[name].note == "no classification"
        assert found[f"{name} on independent"].status == "not run"
    # One number has no direction.
    assert found["llfc-apart-output"].note == "no output of several numbers"
    assert set(found["llfc-cosine"].layers) == {"0"}
    a, b, data = regressors(2)
    assert set(check_pair(a, b, data, loss=squared)["llfc-cosine"].layers) == {"0", "2"}


def test_a_regression_no_better_than_guessing_is_vacuous() -> None:
    a, b, (x, y) = regressors()
    found = check_pair(a, b, (x, y.roll(1, dims=0)), loss=squared)
    assert found["lmc-loss"].status == "vacuous"
    assert "that of guessing" in found["lmc-loss"].note


def test_additivity_is_of_relus_alone() -> None:
    torch.manual_seed(0)
    nets = [
        nn.Sequential(
            *(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES))
        ).eval()
        for _ in range(2)
    ]
    found = check_pair(nets[0], nets[1], blobs())
    assert found.measurements["linked"][0].relus == ("2",)
    assert set(found["additivity"].layers) == {"2"}
    nets = [nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, CLASSES)) for _ in range(2)]
    found = check_pair(nets[0].eval(), nets[1].eval(), blobs())
    assert found["additivity"].note == "no hidden layer with a ReLU"


def test_layers_may_be_chosen(verdicts: Verdicts) -> None:
    a, b, *_ = three()
    found = check_pair(a, b, blobs(600), layers=["2"])
    assert found.measurements["linked"][0].layers == ("2", "4")
    assert found["llfc-cosine"].layers["2"] == pytest.approx(verdicts["llfc-cosine"].layers["2"])


# ---- data in every form -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: TensorDataset(x, y),
        lambda x, y: DataLoader(TensorDataset(x, y), batch_size=77),
        lambda x, y: [(x[:200], y[:200]), (x[200:200], y[200:200]), (x[200:], y[200:])],
        lambda x, y: DataLoader(TensorDataset(x, y), batch_size=64, num_workers=1),
    ],
    ids=["dataset", "loader", "list", "workers"],
)
def test_data_in_every_form_gives_the_same_numbers(form: Any, verdicts: Verdicts) -> None:
    a, b, *_ = three()
    found = check_pair(a, b, form(*blobs(600)))
    want = verdicts.measurements["linked"][0]
    for name in ("error", "loss", "one_minus_cos", "dist_sigma"):
        got = found.measurements["linked"][0].values[name]
        np.testing.assert_allclose(got, want.values[name], atol=1e-6, err_msg=name)


# ---- nothing is touched -------------------------------------------------------------------------


@pytest.mark.parametrize("match", [None, "weight"])
@pytest.mark.parametrize("norm", [False, True])
def test_modules_and_random_numbers_are_left_as_they_were(match: Any, norm: bool) -> None:
    nets = [copy.deepcopy(net) for net in three(norm)]
    nets[0].extra = ["an attribute"]  # type: ignore[assignment]
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    data = DataLoader(TensorDataset(*blobs()), batch_size=100)
    rng = torch.get_rng_state()
    more = {} if match else {"independent": nets[2]}
    check_pair(nets[0], nets[1], data, match=match, **more)
    assert torch.equal(torch.get_rng_state(), rng)
    for net, state in zip(nets, before, strict=True):
        assert identical(net.state_dict(), state)
        for part in net.modules():
            assert not part.training
            assert not part._forward_hooks
            assert not part._forward_pre_hooks
            assert "forward" not in part.__dict__
        assert all(p.grad is None or p.requires_grad for p in net.parameters())


def test_explanations_are_those_of_the_suite(verdicts: Verdicts) -> None:
    assert verdicts.explain("llfc-cosine") == verdicts["llfc-cosine"].explain(claims.LLFC_COSINE)
    assert not math.isnan(verdicts["llfc-cosine"].value)
