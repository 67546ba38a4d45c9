"""Gradient harmonization: every granularity against its equations, ranks, chunks, the curriculum, and what it costs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from collimate.configurable import build
from collimate.encoding import Encoding
from collimate.losses import clip_loss
from collimate.testing import run_on_ranks
from collimate.training import Method, Optimization, surgery
from collimate.training.callbacks import Harmonize
from collimate.training.harmonization import Curriculum, Harmonization

from .toy import Toy, ToyLoader

MODALITIES = ("video", "audio", "text")
GRANULARITIES = ("feature", "sample", "microbatch", "batch")


class Trio(Method):
    """Videos contrasted with sounds and with texts, by one trunk for all three and a head for each."""

    modalities = MODALITIES

    def __init__(self, scale_learns: bool = False) -> None:
        super().__init__()
        self.stems = nn.ModuleDict({name: nn.Linear(6, 8) for name in MODALITIES})
        self.trunk = nn.Sequential(nn.GELU(), nn.Linear(8, 8), nn.GELU())
        self.heads = nn.ModuleDict({name: nn.Linear(8, 5, bias=False) for name in MODALITIES})
        self.logit_scale = nn.Parameter(torch.tensor(1.0), requires_grad=scale_learns)

    def forward(self, modality, inputs, mask=None):
        return Encoding(self.heads[modality](self.trunk(self.stems[modality](inputs))))

    def losses(self, embeddings, batch):
        video, scale = embeddings["video"], self.logit_scale.exp()
        terms = {name: clip_loss(video, embeddings[other], scale) for name, other in (("va", "audio"), ("vt", "text"))}
        return terms | {"size": embeddings["text"].square().mean()}

    def _terms(self, embeddings, batch):
        return self.losses(embeddings, batch)  # in float64, which a step would turn into float32


GROUPS = {"a": ["va"], "t": ["vt"]}  # and "size" by itself


def trio(seed=0, **given):
    torch.manual_seed(seed)
    return Trio(**given).double()


def trio_batch(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = {name: torch.randn(size, 6, generator=generator).double() for name in MODALITIES}
    return batch | {"position": torch.arange(size)}


def harmonized(method, batch, **given):
    """The gradient of each parameter in one step."""
    method.harmonization = Harmonization(**{"groups": GROUPS, **given})
    method.zero_grad()
    method.training_step(batch, 0)["loss"].backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def gradients(method, batch, terms=("va", "vt", "size"), rows=slice(None)):
    """Parameter -> gradient of a sum of terms, where it has one, through the embeddings of some samples."""
    embeddings = method.embed(batch)
    held = {name: value.detach().clone() for name, value in embeddings.items()}
    for name, value in embeddings.items():
        held[name][rows] = value[rows]
    found = method.losses(held, batch)
    learning = {name: p for name, p in method.named_parameters() if p.requires_grad}
    own = torch.autograd.grad(sum(found[term] for term in terms), list(learning.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(learning, own, strict=True) if gradient is not None}


def realigned(first, second):
    dot = first @ second
    if dot >= 0:
        return first + second
    return first - dot / second.square().sum() * second + second - dot / first.square().sum() * first


def by_hand(method, batch, rows=slice(None)):
    """The update, and the cosine of the two groups' gradients with respect to what both reach."""
    va, vt, size = (gradients(method, batch, (term,), rows) for term in ("va", "vt", "size"))
    shared = [name for name in va if name in vt]
    first, second = (torch.cat([own[name].flatten() for name in shared]) for own in (va, vt))
    parts = realigned(first, second).split([va[name].numel() for name in shared])
    update = {name: part.view_as(va[name]) for name, part in zip(shared, parts, strict=True)}
    for own in ({**va, **vt}, size):
        update |= {
            name: update.get(name, 0) + value for name, value in own.items() if own is size or name not in shared
        }
    return update, torch.cosine_similarity(first, second, dim=0)


def at_odds(**given):
    """A method and a batch whose groups are at odds."""
    for seed in range(50):
        method, batch = trio(seed, **given), trio_batch(seed=seed)
        if by_hand(method, batch)[1] < -0.03:
            return method, batch
    raise AssertionError("no seed gives a conflict")


def assert_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )


# What each granularity is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["microbatch", "batch"])
@pytest.mark.parametrize("scale_learns", [False, True])
def test_parameters_are_realigned_as_the_equations_say(granularity, scale_learns):
    method, batch = at_odds(scale_learns=scale_learns)
    wanted, cosine = by_hand(method, batch)
    found = harmonized(method, batch, granularity=granularity)
    assert_gradients(found, wanted)
    assert float(method.statistics["conflict/cosine"]) == pytest.approx(float(cosine), abs=1e-5)
    assert method.statistics["conflict/share"] == 1
    untouched = gradients(method, batch)
    assert any(not torch.allclose(found[name], untouched[name]) for name in found)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("groups", [GROUPS, {"a": ["va"], "rest": ["vt", "size"]}, None])
def test_the_rule_sum_is_the_plain_gradient(granularity, groups):
    method, batch = at_odds(scale_learns=True)
    method.optimization = Optimization(loss_weights={"va": 2.0})
    found = harmonized(method, batch, granularity=granularity, rule="sum", groups=groups)
    double, once = gradients(method, batch, ("va",)), gradients(method, batch)
    assert_gradients(found, {name: value + double.get(name, 0) for name, value in once.items()})


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_losses_that_agree_are_left_alone(granularity):
    method, batch = trio(), trio_batch()
    batch["audio"] = batch["text"].clone()
    for part in (method.stems, method.heads):
        part["audio"].load_state_dict(part["text"].state_dict())
    assert_gradients(harmonized(method, batch, granularity=granularity), gradients(method, batch))
    assert method.statistics["conflict/share"] == 0


def test_samples_are_realigned_one_by_one():
    method, batch = at_odds()
    rows = [by_hand(method, batch, slice(row, row + 1)) for row in range(6)]
    wanted = {name: sum(update[name] for update, _ in rows) for name in rows[0][0]}
    assert_gradients(harmonized(method, batch, granularity="sample"), wanted)
    cosines = torch.stack([cosine for _, cosine in rows])
    assert 0 < (cosines < 0).sum() < 6
    assert float(method.statistics["conflict/share"]) == pytest.approx(float((cosines < 0).double().mean()))


def test_features_are_realigned_sample_by_sample():
    method, batch = at_odds()
    leaves = {name: value.detach().requires_grad_() for name, value in method.embed(batch).items()}
    terms = method.losses(leaves, batch)
    va, vt = (torch.autograd.grad(terms[name], leaves["video"], retain_graph=True)[0] for name in ("va", "vt"))
    cotangents = {name: torch.autograd.grad(sum(terms.values()), leaves[name], retain_graph=True)[0] for name in leaves}
    cotangents["video"] = torch.stack([realigned(*pair) for pair in zip(va, vt, strict=True)])
    method.zero_grad()
    sum((method.embed(batch)[name] * value).sum() for name, value in cotangents.items()).backward()
    wanted = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    assert_gradients(harmonized(method, batch, granularity="feature"), wanted)
    assert 0 < (torch.linalg.vecdot(va, vt) < 0).sum() < 6


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 2**16), st.integers(2, 4), st.integers(1, 6))
def test_pcgrad_never_points_against_an_original(seed, count, width):
    own = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(seed)).double()
    update = (surgery.pcgrad(own @ own.mT) @ own).sum(1)
    assert (torch.einsum("bp,bkp->bk", update, own) >= -1e-9).all()
    many = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()
    assert torch.isfinite(surgery.GradVac()(many @ many.T)).all()


@pytest.mark.parametrize("rule", ["pcgrad", "gradvac", "cagrad", "mgda", "imtl_g", "aligned_mtl"])
@pytest.mark.parametrize("granularity", ["feature", "microbatch"])
def test_every_rule_gives_finite_gradients_even_of_zeros(rule, granularity):
    method, batch = trio(), trio_batch()
    method.optimization = Optimization(loss_weights={"vt": 0.0})
    found = harmonized(method, batch, granularity=granularity, rule=rule)
    assert all(torch.isfinite(value).all() for value in found.values())
    assert method.statistics["conflict/cosine"] == 0


# Ranks and chunks -----------------------------------------------------------------------------------------------


def mean_over_ranks(batch, splits, **given):
    parts = {name: value.split(splits) for name, value in batch.items()}
    jobs = [({name: part[rank] for name, part in parts.items()},) for rank in range(len(splits))]
    found = run_on_ranks(lambda rows: harmonized(trio(), rows, **given), jobs)
    return {name: torch.stack([own[name] for own in found]).mean(0) for name in found[0]}


@pytest.mark.parametrize(
    ("granularity", "curriculum"),
    [("feature", None), ("feature", Curriculum(0.2, 0.2)), ("sample", Curriculum(0.9, 0.9, 0.3)), ("batch", None)],
)
def test_ranks_give_what_one_process_gives(granularity, curriculum):
    batch, given = trio_batch(9, seed=5), {"granularity": granularity, "curriculum": curriculum}
    assert_gradients(mean_over_ranks(batch, [3, 3, 3], **given), harmonized(trio(), batch, **given))


def test_micro_batches_of_ranks_are_realigned_before_they_are_averaged():
    batch, method = trio_batch(6, seed=5), trio()
    halves = [by_hand(method, batch, rows) for rows in (slice(0, 3), slice(3, 6))]
    wanted = {name: value + halves[1][0][name] for name, value in halves[0][0].items()}
    assert_gradients(mean_over_ranks(batch, [3, 3]), wanted)
    assert any(cosine < 0 for _, cosine in halves)


class Stepped(nn.Module):
    """A training step as DDP runs it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch):
        return self.method.training_step(batch, 0)["loss"]


def through_ddp(batch, granularity):
    method = trio()
    method.harmonization = Harmonization(GROUPS, granularity)
    wrapped = nn.parallel.DistributedDataParallel(Stepped(method))
    wrapped(batch).backward()
    return {name: p.grad for name, p in method.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("granularity", ["feature", "microbatch"])
def test_ddp_averages_what_was_realigned(granularity):
    batch = trio_batch(6, seed=5)
    halves = [{name: value.split(3)[rank] for name, value in batch.items()} for rank in range(2)]
    found = run_on_ranks(through_ddp, [(half, granularity) for half in halves])
    wanted = mean_over_ranks(batch, [3, 3], granularity=granularity)
    for own in found:
        assert_gradients(own, wanted)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_gradient_cache_changes_nothing(granularity):
    method, batch = at_odds(scale_learns=True)
    wanted = harmonized(method, batch, granularity=granularity, curriculum=Curriculum(0.0, 0.0))
    method.gradient_cache = 4
    found = harmonized(method, batch, granularity=granularity, curriculum=Curriculum(0.0, 0.0))
    assert_gradients(found, wanted)


# The curriculum -------------------------------------------------------------------------------------------------


def test_samples_that_are_put_off_give_nothing_and_stay_as_negatives():
    method, batch = at_odds()
    cosines = torch.stack([by_hand(method, batch, slice(row, row + 1))[1] for row in range(6)])
    threshold = float(cosines.sort().values[2:4].mean())
    kept = (cosines > threshold).nonzero().flatten().tolist()
    rows = [gradients(method, batch, ("va", "vt", "size"), slice(row, row + 1)) for row in kept]
    wanted = {name: 2 * sum(own[name] for own in rows) for name in rows[0]}  # half of the samples weigh twice as much
    curriculum = Curriculum(threshold, threshold)
    assert_gradients(harmonized(method, batch, granularity="sample", rule="sum", curriculum=curriculum), wanted)
    assert method.statistics["conflict/kept"] == 0.5


def test_the_threshold_grows_and_someone_is_always_kept():
    curriculum = Curriculum()
    assert [curriculum.threshold(share) for share in (0, 0.5, 1, 2)] == pytest.approx([-0.3, -0.15, 0, 0])
    cosines, known = torch.tensor([-0.9, -0.5, -0.7, -0.8, 0.0]), torch.tensor([True, True, True, True, False])
    assert Curriculum.above(cosines, 0.0, known, 0.1).tolist() == [False, False, False, False, True]
    assert Curriculum.above(cosines[:4], 0.0, known[:4], 0.5).tolist() == [False, True, True, False]
    assert Curriculum.above(cosines[:4], 0.0, known[:4], 0.0).tolist() == [False, True, False, False]
    assert Curriculum(1.0, 1.0, 0.5).weights(cosines[:4], known[:4], 0.0).tolist() == [0, 2, 2, 0]


# In a run -------------------------------------------------------------------------------------------------------


def fit(method, batches, *callbacks, **given):
    trainer = Trainer(
        max_steps=len(batches) // given.get("accumulate_grad_batches", 1),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **given,
    )
    trainer.fit(method, DataLoader(batches, batch_size=None))


def test_one_switch_in_a_recipe_and_off_afterwards():
    method = trio()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    fit(method, [trio_batch(seed=seed) for seed in range(3)], Harmonize(Harmonization(GROUPS, curriculum=Curriculum())))
    assert method.harmonization is None
    assert any(not torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert {"conflict/cosine", "conflict/share", "conflict/kept"} <= method.statistics.keys()


def at_odds_on_average():
    for seed in range(50):
        method, batches = trio(seed), [trio_batch(seed=seed), trio_batch(seed=seed + 1)]
        va, vt = (
            {name: a + b for (name, a), b in zip(own[0].items(), own[1].values(), strict=True)}
            for own in ([gradients(method, batch, (term,)) for batch in batches] for term in ("va", "vt"))
        )
        if sum((va[name] * vt[name]).sum() for name in va if name in vt) < 0:
            return method, batches
    raise AssertionError("no seed gives a conflict")


def test_batches_that_are_accumulated_are_realigned_together():
    method, batches = at_odds_on_average()
    method.optimization = Optimization(
        "momentum", lr=1.0, warmup=0, schedule="constant", betas=None, eps=None, weight_decay=0
    )
    start = {name: p.detach().clone() for name, p in method.named_parameters()}
    groups = [[gradients(method, batch, (term,)) for batch in batches] for term in ("va", "vt", "size")]
    va, vt, size = ({name: (a[name] + b[name]) / 2 for name in a} for a, b in groups)
    shared = [name for name in va if name in vt]
    first, second = (torch.cat([own[name].flatten() for name in shared]) for own in (va, vt))
    parts = realigned(first, second).split([va[name].numel() for name in shared])
    wanted = {**va, **vt, **{n: part.view_as(va[n]) for n, part in zip(shared, parts, strict=True)}}
    wanted |= {name: wanted[name] + value for name, value in size.items()}
    assert first @ second < 0
    fit(method, batches, Harmonize(Harmonization(GROUPS, "batch")), accumulate_grad_batches=2)
    found = {name: start[name] - p.detach() for name, p in method.named_parameters() if p.requires_grad}
    assert_gradients(found, wanted)


@pytest.mark.parametrize(("granularity", "most"), [("feature", 3), ("microbatch", 4), ("batch", 4)])
def test_towers_are_differentiated_once_or_once_for_each_group(granularity, most):
    """A step without harmonization passes the trunk three times, once for each modality; each group reaches two."""
    method, batch = trio(), trio_batch()
    passes = []
    method.trunk.register_full_backward_hook(lambda *_: passes.append(1))
    harmonized(method, batch, granularity=granularity, groups={"a": ["va"], "t": ["vt", "size"]})
    assert len(passes) == most


def test_gradvac_goes_on_where_it_was():
    callback, other = (Harmonize(Harmonization(GROUPS, rule="gradvac")) for _ in range(2))
    method, batch = trio(), trio_batch()
    method.harmonization = callback.harmonization
    method.training_step(batch, 0)
    other.load_state_dict(callback.state_dict())
    assert torch.equal(other.harmonization.vac.targets, callback.harmonization.vac.targets)
    assert callback.harmonization.vac.targets.abs().sum() > 0


def test_harmonization_is_plain_configuration():
    harmonization = Harmonization(GROUPS, "feature", "gradvac", Curriculum(-0.2), 0.5)
    again = build(harmonization.config())
    assert again.config() == harmonization.config()


@pytest.mark.parametrize("groups", [{"a": ["va"], "t": ["nonsense"]}, {"a": ["va"]}, {"a": ["va"], "t": ["vt", "va"]}])
def test_groups_that_make_no_sense_are_refused(groups):
    with pytest.raises(ValueError, match="two or more groups that share out the terms va, vt, size"):
        harmonized(trio(), trio_batch(), groups=groups)


def test_a_method_of_one_term_is_refused():
    with pytest.raises(ValueError, match="two or more groups"):
        fit_toy(Harmonization())


def test_groups_that_share_nothing_are_refused():
    method, batch = trio(), trio_batch()
    method.losses = lambda embeddings, batch: {name: embeddings[name].mean() for name in ("audio", "text")}
    method.trunk.requires_grad_(False)
    with pytest.raises(ValueError, match="share no parameter"):
        harmonized(method, batch, groups=None)
    with pytest.raises(ValueError, match="No embedding is reached by two"):
        harmonized(method, batch, groups=None, granularity="feature")


def fit_toy(harmonization):
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Harmonize(harmonization)],
    )
    trainer.fit(Toy(), ToyLoader(1))
