"""The data of a recipe, under Lightning: mid-epoch resume without a sample lost or repeated."""

from types import MappingProxyType

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from collimate.data import DataModule, ImageAugmentation, RegionChoice, Source
from collimate.data.module import rank_batch_size
from collimate.processing import ClassLabels


class Recorder(LightningModule):
    """Notes which positions it was given."""

    def __init__(self, processors) -> None:
        super().__init__()
        self.processors = processors
        self.layer = torch.nn.Linear(1, 1)
        self.seen, self.validated = [], 0

    def training_step(self, batch, batch_idx):
        self.seen.append((batch_idx, batch["position"].tolist()))
        return self.layer(batch["image"].float().mean().view(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.validated += int(batch["valid"].sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


@pytest.fixture
def fit(shards, processors, tmp_path):
    shards(15, 10, 12)

    def run(steps, checkpoint=None, callbacks=(), method=Recorder, **options):
        data = DataModule(**{"train": f"{tmp_path}/shards", "batch_size": 4, "epoch_samples": 20, **options})
        module = method(processors)
        trainer = Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            enable_checkpointing=bool(callbacks),
            callbacks=list(callbacks),
            use_distributed_sampler=False,
        )
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return module

    return run


@pytest.mark.filterwarnings("ignore")
def test_resuming_from_any_step_goes_on_with_the_very_next_sample(fit, tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    whole = fit(13, callbacks=[keep]).seen
    assert [index for index, _ in whole] == [0, 1, 2, 3, 4] * 2 + [0, 1, 2]
    assert [position for _, positions in whole for position in positions] == list(range(52))
    for step in (1, 4, 5, 6, 11):
        assert fit(13, str(tmp_path / f"step={step}.ckpt"), num_workers=step % 2).seen == whole[step:]


@pytest.mark.filterwarnings("ignore")
def test_validation_sees_each_sample_once(fit, tmp_path):
    assert fit(5, val=f"{tmp_path}/shards").validated == 37
    assert fit(5, val=f"{tmp_path}/shards", val_limit=11, val_batch_size=3).validated == 11


@pytest.mark.filterwarnings("ignore")
def test_mixtures_by_weight(fit, tmp_path):
    path = tmp_path / "shards"
    data = {f"{path}/000000.tar": 3.0, f"{path}/{{000001..000002}}.tar": 1.0}
    assert len(DataModule(data).mixture().sources) == 2
    with pytest.raises(ValueError, match="nothing to train on"):
        DataModule().mixture()


class Viewing(Recorder):
    """Asks for a second view of each picture and its identity, and keeps what it is given."""

    views = MappingProxyType({"image_view": "image"})
    also = ("id",)

    def __init__(self, processors) -> None:
        super().__init__(processors)
        self.trained, self.shown = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.shown.append(batch)


@pytest.mark.filterwarnings("ignore")
def test_batches_hold_the_views_and_what_else_a_method_asks_for(fit, tmp_path):
    module = fit(5, method=Viewing, val=f"{tmp_path}/shards")
    assert all(batch["image_view"].shape == batch["image"].shape for batch in module.trained)
    assert not any(torch.equal(batch["image_view"], batch["image"]) for batch in module.trained)
    assert all(torch.equal(batch["image_view"], batch["image"]) for batch in module.shown)
    trained, shown = (torch.cat([batch["id"] for batch in batches]) for batches in (module.trained, module.shown))
    assert len(shown.unique()) == 37
    assert set(trained.tolist()) <= set(shown.tolist())


@pytest.mark.filterwarnings("ignore")
def test_views_are_the_same_after_resuming(fit, tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    whole = fit(4, method=Viewing, callbacks=[keep]).trained
    rest = fit(4, str(tmp_path / "step=2.ckpt"), method=Viewing, num_workers=1).trained
    assert len(rest) == 2
    for before, after in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(before[key], after[key]) for key in ("image", "image_view", "id", "position"))


class Boxed(Source):
    """Sample n has n regions."""

    name = "boxed"

    def __len__(self):
        return 12

    def read(self, index):
        picture = Image.linear_gradient("L").resize((60, 60))
        regions = [{"box": [x, 0, x + 5, 60], "phrase": f"strip {x}"} for x in range(0, 5 * index, 5)]
        return {"__key__": str(index), "png": picture, "txt": "strips", "regions.json": regions}


class Looking(Viewing):
    """Reads regions, and keeps what it is given."""

    regions = RegionChoice(5)


@pytest.mark.filterwarnings("ignore")
def test_methods_that_read_regions_get_them_and_no_crop(fit):
    module = fit(5, method=Looking, train=Boxed(), val=Boxed())
    assert {batch["regions"].shape for batch in (*module.trained, *module.shown)} == {(4, 5, 4)}
    given = torch.cat([batch["region_given"].sum(1) for batch in module.shown])
    assert given.tolist() == [min(number, 5) for number in range(12)]
    for batch in module.trained:
        assert torch.equal(batch["image"], batch["image_view"]), "a crop was drawn"
    assert fit(1, method=Looking, train=Boxed(), regions=RegionChoice(2)).trained[0]["regions"].shape == (4, 2, 4)
    cropped = fit(1, method=Looking, train=Boxed(), augmentations={"image": ImageAugmentation((0.2, 0.5))})
    assert (cropped.trained[0]["regions_dropped"] > 0).any()


def test_recipes_may_write_all_forms(tmp_path):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataModule, "data")
    (tmp_path / "t.csv").write_text("caption\na\n")
    table = {"class_path": "collimate.data.TableSource", "init_args": {"path": str(tmp_path / "t.csv")}}
    crop = {"class_path": "collimate.data.ImageAugmentation", "init_args": {"scale": [0.5, 1.0]}}
    for given in (
        {"train": "a.jsonl"},
        {"train": {"a": 1, "b": 2.5}},
        {"train": "a.jsonl", "regions": {"class_path": "collimate.data.RegionChoice", "init_args": {"max_regions": 2}}},
        {"train": table, "augmentations": {"image": crop}},
    ):
        parsed = parser.parse_object({"data": given})
        module = parser.instantiate(parsed).data
        if given.get("train") is table:
            assert len(module.train) == 1
            assert module.augmentations["image"].scale == (0.5, 1.0)
        else:
            assert module.train == given["train"]


def test_global_batches_are_shared_out():
    assert rank_batch_size(5, None, 3) == 5
    assert rank_batch_size(5, 12, 3) == 4
    with pytest.raises(ValueError, match="cannot be shared out"):
        rank_batch_size(5, 10, 3)


@pytest.mark.filterwarnings("ignore")
def test_balanced_sampling_draws_rare_classes_as_often_as_frequent_ones(tmp_path):
    rows = "".join(f"{number}.txt,{'rare' if number < 2 else 'frequent'}\n" for number in range(40))
    (tmp_path / "t.csv").write_text("txt,label\n" + rows)
    data = DataModule(f"{tmp_path}/t.csv", f"{tmp_path}/t.csv", batch_size=20, balanced=True)
    data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    data.trainer.strategy.connect(Recorder({"labels": ClassLabels(["frequent", "rare"])}))
    loader = data.train_dataloader()
    share = torch.cat([next(loader)["labels"] for _ in range(50)]).mean(0)
    assert share.tolist() == pytest.approx([0.5, 0.5], abs=0.06)
    data.trainer.strategy.connect(Recorder({"labels": ClassLabels(["rare", "frequent"])}))
    for dataloader in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(ValueError, match="otherwise"):
            dataloader()
